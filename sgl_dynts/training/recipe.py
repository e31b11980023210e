"""How a predictor is fitted: numbers and names alone, so that a command tells them without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

LOSS_NAMES = ("mse", "mse-band", "mse-emphasis", "listwise")
SCALE_NAMES = ("power", "times", "mean", "log")
ENOUGH_STEPS = 410
"""Optimizer steps that a fit wants, as many as the paper's takes: 7,000 traces, 256 a step, 15 times."""
MOST_EPOCHS = 60
FEW_HELD_OUT = 10


@dataclass(frozen=True)
class FitRecipe:
    """How a predictor is fitted; the defaults are the paper's, in float32 instead of bfloat16.

    Source: the DynTS paper and its code. Hidden layers are d * `widen` and d * `narrow` wide. A batch
    is so many traces; `emphasis` is read by the loss `mse-emphasis` alone. `scale_inputs` divides the
    first layer's initial weights by the size of the states, which the paper does not do. With a
    `patience` above 0 the epoch with the least held-out loss is kept, and the fit ends when so many
    epochs in a row were no better; with 0, as in the paper, the last epoch is kept.
    """

    seed: int = 1
    epochs: int = 15
    batch_size: int = 256
    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    clip_norm: float = 1.0
    loss: str = "mse"
    scale: str = "power"
    emphasis: float = 3.0
    widen: float = 2.0
    narrow: float = 0.5
    scale_inputs: bool = False
    patience: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot be.

        Raises:
            ValueError: naming the field, its value and a remedy.
        """
        for name, known in (("loss", LOSS_NAMES), ("scale", SCALE_NAMES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose of {', '.join(known)}"
                )
        for name in ("epochs", "batch_size", "learning_rate", "widen", "narrow"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if self.patience < 0:
            raise ValueError(f"patience={self.patience} must be 0 or above; 0 keeps the last epoch")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share={self.warmup_share} must lie between 0 and 1, 1 excluded")

    def inner_sizes(self, width: int) -> tuple[int, int]:
        """Return how wide the hidden layers are for states of this width."""
        return int(width * self.widen), max(1, int(width * self.narrow))

    def num_weights(self, width: int) -> int:
        """Return how many weights a predictor for states of this width has."""
        one, two = self.inner_sizes(width)
        return width * one + one * two + two

    def num_steps(self, num_traces: int) -> int:
        """Return the most optimizer steps that a fit to so many traces takes."""
        return self.epochs * ceil(num_traces / self.batch_size)


PAPER = FitRecipe()


def recipe_for(num_traces: int, target: str, given: Mapping[str, Any] | None = None) -> FitRecipe:
    """Return a recipe for so many traces that neither underfits nor keeps what overfits.

    A batch is at most the paper's, and small enough for `ENOUGH_STEPS`; where single traces are too few
    for that, there are more epochs. The epoch with the least held-out loss is kept, and none is left out:
    the last ones, whose learning rate is small, are mostly the best. Targets `deletion` are fitted by
    their logarithm. The rest is the paper's.

    Args:
        num_traces: that are fitted to, at least 1.
        target: kind of the targets.
        given: fields of the recipe that somebody chose; they stay as they are.

    Raises:
        ValueError: a field that was given does not exist or cannot be.
    """
    chosen = dict(given or {})
    if unknown := sorted(chosen.keys() - vars(PAPER).keys()):
        raise ValueError(
            f"recipe: {', '.join(unknown)} is no field of FitRecipe; choose of {', '.join(vars(PAPER))}"
        )
    epochs = max(PAPER.epochs, min(MOST_EPOCHS, ceil(ENOUGH_STEPS / num_traces)))
    epochs = chosen.setdefault("epochs", epochs)
    chosen.setdefault("batch_size", max(1, min(PAPER.batch_size, num_traces * epochs // ENOUGH_STEPS)))
    chosen.setdefault("scale", "log" if target == "deletion" else PAPER.scale)
    chosen.setdefault("patience", epochs)
    return FitRecipe(**chosen)


def expectation(
    recipe: FitRecipe, num_fitted: int, num_held_out: int, num_tokens: int, width: int
) -> str:
    """Return what can be said of a fit before it is made, as one line or several.

    It follows from counts alone: whether steps, tokens and held-out traces are enough. Whether what is
    learned serves is measured afterwards.

    Args:
        recipe: of the fit.
        num_fitted: traces that are fitted to.
        num_held_out: traces that are measured.
        num_tokens: of the fitted traces, those that count.
        width: hidden size of the model.
    """
    steps, weights = recipe.num_steps(num_fitted), recipe.num_weights(width)
    lines = [f"expected: up to {steps:,} optimizer steps, {num_tokens:,} tokens for {weights:,} weights"]
    if steps < ENOUGH_STEPS / 2:
        lines.append(
            f"  underfitting: the paper's fit takes {ENOUGH_STEPS} steps; lower the batch "
            f"({recipe.batch_size}) or give more traces"
        )
    if num_tokens < weights:
        kept = "the best epoch is kept" if recipe.patience else "the last epoch is kept: set patience"
        lines.append(f"  overfitting: fewer tokens than weights; {kept}; more traces would help most")
    if num_held_out < FEW_HELD_OUT:
        lines.append(f"  chance: {num_held_out} held out, so that small differences below say nothing")
    return "\n".join(lines)
