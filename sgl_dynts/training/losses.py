"""What a fit minimises: targets scaled to a range that training likes, and losses over one trace."""

from collections.abc import Callable

import torch
from torch import Tensor

Scale = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""(scores [n], scaled targets [n]) of one trace -> the sum over its tokens, a scalar."""

HEAVY_BAND = (4.0, 5.0)
HEAVY_WEIGHT = 5.0
LOG_STEPS = 100.0


def by_power(targets: Tensor) -> Tensor:
    """Return 10 x^0.3 / 0.3; source: the authors' code, for Qwen2."""
    return targets.pow(0.3) * (10 / 0.3)


def by_ten_thousand(targets: Tensor) -> Tensor:
    """Return 10,000 x; source: the authors' code, for Llama."""
    return targets * 1e4


def by_mean(mean: float) -> Scale:
    """Return a scale that divides by the mean of the training targets.

    Raises:
        ValueError: the mean is not above 0, so that there is nothing to learn.
    """
    if not mean > 0:
        raise ValueError(
            f"the mean of the training targets is {mean}, not above 0; choose another target"
        )
    return lambda targets: targets / mean


def by_log(mean: float) -> Scale:
    """Return a scale log(1 + x / floor) whose floor is a hundredth of the mean of the training targets.

    For targets that differ by orders of magnitude, whose mean a few of them make: above the floor equal
    steps are equal ratios, and below it all count as nothing.

    Raises:
        ValueError: as of :func:`by_mean`.
    """
    shares = by_mean(mean)
    return lambda targets: (LOG_STEPS * shares(targets)).log1p()


SCALES: dict[str, Scale | None] = {
    "power": by_power,
    "times": by_ten_thousand,
    "mean": None,
    "log": None,
}
"""By name; those that are None are known once the targets are."""
SCALES_BY_MEAN: dict[str, Callable[[float], Scale]] = {"mean": by_mean, "log": by_log}
"""Make a scale from the mean of the training targets."""


def squared_error(weights: Callable[[Tensor], Tensor]) -> Loss:
    """Return a weighted squared error; `weights` gives each token's from the scaled targets."""

    def loss(scores: Tensor, targets: Tensor) -> Tensor:
        return (weights(targets) * (scores - targets).square()).sum()

    return loss


def heavy_band(targets: Tensor) -> Tensor:
    """Weigh 5 from 4 to below 5 and 1 elsewhere; source: the authors' code."""
    low, high = HEAVY_BAND
    inside = (targets >= low) & (targets < high)
    return torch.where(inside, HEAVY_WEIGHT, 1.0)


def by_target(emphasis: float) -> Callable[[Tensor], Tensor]:
    """Weigh 1 + emphasis * target: what may be read is scored as what it would be worth if it is."""
    return lambda targets: 1 + emphasis * targets


def listwise(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of a trace's softmax over scores against its targets as shares, times n.

    Source: ListNet (Cao et al., 2007), top-one probabilities, with the targets themselves in place of
    their softmax. A token counts by its share of the trace's importance, so the order among the many
    that nobody reads costs next to nothing. Scores of different traces are not compared.
    """
    shares = targets / targets.sum().clamp_min(torch.finfo(targets.dtype).tiny)
    return -(shares * scores.log_softmax(-1)).sum() * len(scores)


LOSSES: dict[str, Callable[[float], Loss]] = {
    "mse": lambda _: squared_error(torch.ones_like),
    "mse-band": lambda _: squared_error(heavy_band),
    "mse-emphasis": lambda emphasis: squared_error(by_target(emphasis)),
    "listwise": lambda _: listwise,
}
"""By name, from the recipe's emphasis: the paper's squared error, with its weights, ours, a list's."""
