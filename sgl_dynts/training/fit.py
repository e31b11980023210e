"""Fit an importance predictor to states and targets that stream from disk.

The fit is a sequence of epochs, each a function of what the last one left and of the seed. What an
epoch leaves is written down, so a fit that was interrupted goes on from its last whole epoch and ends
with the same weights, bit for bit on the same machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.losses import LOSSES, SCALES, SCALES_BY_MEAN, Scale
from sgl_dynts.training.metrics import Ranking, mean_ranking, rank_quality
from sgl_dynts.training.recipe import FitRecipe
from sgl_dynts.training.states import TraceStates

PROGRESS_FILE = "fit.safetensors"
KEPT = "kept."
"""Begins the names of the weights that are kept so far, in the progress file."""


class Traces(Protocol):
    """States of traces by key, as :class:`~sgl_dynts.training.states.StateStore` holds them."""

    def read(self, key: str) -> TraceStates:
        """Return one trace's states and targets."""
        ...

    def length(self, key: str) -> int:
        """Return how many of its tokens count."""
        ...


@dataclass(frozen=True)
class Split:
    """Keys of the traces that are fitted to and of those held out, each in a fixed order."""

    fitted: tuple[str, ...]
    held_out: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a split without traces on both sides.

        Raises:
            ValueError: says which side is empty.
        """
        for name in ("fitted", "held_out"):
            if not getattr(self, name):
                raise ValueError(
                    f"no trace is {name.replace('_', ' ')}; give more questions, or several texts, or "
                    "change --held-out"
                )


@dataclass(frozen=True)
class Epoch:
    """What one epoch left: mean losses per token, and how held-out traces are ordered (means)."""

    epoch: int
    loss: float
    held_out_loss: float
    held_out: Ranking


@dataclass
class Fit:
    """A fit under way: the predictor, its optimizer, and what the epochs so far left."""

    recipe: FitRecipe
    predictor: ImportancePredictor
    optimizer: torch.optim.AdamW
    history: list[Epoch] = field(default_factory=list)
    kept: dict[str, Tensor] = field(default_factory=dict)
    """Weights after the epoch that is kept so far, by name."""

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or enough of them in a row were no better than an earlier one."""
        since = len(self.history) - kept_epoch(self.recipe, self.history).epoch if self.history else 0
        given_up = 0 < self.recipe.patience <= since
        return given_up or len(self.history) >= self.recipe.epochs

    def note(self, epoch: Epoch) -> None:
        """Add an epoch, and keep its weights if it is the one to keep."""
        self.history.append(epoch)
        if kept_epoch(self.recipe, self.history) is epoch:
            named = self.predictor.named_parameters()
            self.kept = {name: weight.detach().clone() for name, weight in named}


def kept_epoch(recipe: FitRecipe, epochs: Sequence[Epoch]) -> Epoch:
    """Return the epoch whose weights are the predictor's: the first best one, or the last of all."""
    return min(epochs, key=lambda epoch: epoch.held_out_loss) if recipe.patience else epochs[-1]


def fit_predictor(
    traces: Traces,
    split: Split,
    recipe: FitRecipe,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> tuple[ImportancePredictor, list[Epoch]]:
    """Return a predictor fitted to the traces of `split`, in float32 on the CPU, and its epochs.

    Args:
        traces: what `split` names; one trace at a time is in memory.
        split: whose held-out traces are only measured.
        recipe: sizes, losses, epochs and seed; says which epoch is kept.
        folder: where each epoch is written down and an interrupted fit is taken up; none without.
        device: to compute on.
        report: called after every epoch.

    Raises:
        ValueError: `folder` holds a fit of another recipe or of other traces, or the targets are all 0.
    """
    scale = _scale(traces, split, recipe)
    fit = _new_fit(traces, split, recipe, device)
    identity = _identity(split, recipe)
    if folder is not None:
        _take_up(fit, folder / PROGRESS_FILE, identity)
    while not fit.is_over:
        loss = _run_epoch(fit, traces, split.fitted, scale)
        held_out_loss, ranking = measure(fit.predictor, traces, split.held_out, recipe, scale)
        fit.note(Epoch(len(fit.history) + 1, loss, held_out_loss, ranking))
        if folder is not None:
            _write_down(fit, folder / PROGRESS_FILE, identity)
        report(fit.history[-1])
    fit.predictor.load_state_dict(fit.kept)
    return fit.predictor.cpu().requires_grad_(False).eval(), fit.history


@torch.no_grad()
def measure(
    predictor: ImportancePredictor,
    traces: Traces,
    keys: Sequence[str],
    recipe: FitRecipe,
    scale: Scale,
) -> tuple[float, Ranking]:
    """Return (mean loss per token, mean ranking) of a predictor on the traces called `keys`."""
    loss_of, total, rankings = LOSSES[recipe.loss](recipe.emphasis), 0.0, []
    device = next(predictor.parameters()).device
    for key in keys:
        states = traces.read(key)
        scores, targets = predictor(states.hidden.to(device)), states.targets.to(device)
        total += loss_of(scores, scale(targets)).item()
        rankings.append(rank_quality(scores, targets, states.critical.to(device)))
    return total / sum(map(traces.length, keys)), mean_ranking(rankings)


def _run_epoch(fit: Fit, traces: Traces, keys: Sequence[str], scale: Scale) -> float:
    """Pass over the traces once, in an order drawn for this epoch; return the mean loss per token."""
    recipe, epoch = fit.recipe, len(fit.history)
    order = random.Random(f"{recipe.seed}-{epoch}").sample(keys, len(keys))
    batches = [order[i : i + recipe.batch_size] for i in range(0, len(order), recipe.batch_size)]
    total = 0.0
    for number, batch in enumerate(batches):
        step, num_steps = epoch * len(batches) + number, recipe.epochs * len(batches)
        for group in fit.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_share(step, num_steps, recipe.warmup_share)
        total += _take_step(fit, traces, batch, scale)
    return total / sum(map(traces.length, keys))


def _take_step(fit: Fit, traces: Traces, batch: Sequence[str], scale: Scale) -> float:
    """Take one optimizer step; gradients add up trace by trace. Return the loss summed over tokens."""
    loss_of = LOSSES[fit.recipe.loss](fit.recipe.emphasis)
    device = next(fit.predictor.parameters()).device
    num_tokens = sum(map(traces.length, batch))
    total = torch.zeros((), device=device)
    fit.optimizer.zero_grad(set_to_none=True)
    for key in batch:
        states = traces.read(key)
        scores = fit.predictor(states.hidden.to(device))
        loss = loss_of(scores, scale(states.targets.to(device)))
        (loss / num_tokens).backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(fit.predictor.parameters(), fit.recipe.clip_norm)
    fit.optimizer.step()
    return total.item()


def learning_rate_share(step: int, num_steps: int, warmup_share: float) -> float:
    """Return what part of the learning rate a step takes: a linear rise, then half a cosine to 0."""
    warmup = math.ceil(warmup_share * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))


def _scale(traces: Traces, split: Split, recipe: FitRecipe) -> Scale:
    known = SCALES[recipe.scale]
    if known is not None:
        return known
    totals = [traces.read(key).targets.double().sum().item() for key in split.fitted]
    return SCALES_BY_MEAN[recipe.scale](sum(totals) / sum(map(traces.length, split.fitted)))


def _new_fit(traces: Traces, split: Split, recipe: FitRecipe, device: torch.device | str) -> Fit:
    sample = traces.read(split.fitted[0]).hidden.float()
    width = sample.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        predictor = ImportancePredictor(width, recipe.inner_sizes(width))
    if recipe.scale_inputs:
        with torch.no_grad():
            next(predictor.parameters()).div_(sample.square().mean().sqrt())
    predictor.to(device)
    optimizer = torch.optim.AdamW(
        predictor.parameters(),
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
    )
    return Fit(recipe, predictor, optimizer)


def _identity(split: Split, recipe: FitRecipe) -> dict[str, str]:
    """Return what tells one fit from another: its recipe, and a digest of its traces."""
    digest = hashlib.sha256(json.dumps(asdict(split)).encode()).hexdigest()
    return {"recipe": json.dumps(asdict(recipe)), "traces": digest}


def _write_down(fit: Fit, file: Path, identity: dict[str, str]) -> None:
    """Write weights, moments and epochs; the old file stands until the new one is whole."""
    tensors = {KEPT + name: weight for name, weight in fit.kept.items()}
    for name, parameter in fit.predictor.named_parameters():
        tensors[name] = parameter.detach()
        tensors |= {f"{name}.{key}": value for key, value in fit.optimizer.state[parameter].items()}
    history = json.dumps([asdict(epoch) for epoch in fit.history])
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={**identity, "history": history})
    unfinished.replace(file)


def _take_up(fit: Fit, file: Path, identity: dict[str, str]) -> None:
    if not file.exists():
        return
    with safe_open(file, framework="pt") as saved:
        metadata = saved.metadata()
        differing = [name for name in identity if metadata[name] != identity[name]]
        if differing:
            raise ValueError(
                f"{file}: a fit of another {' and other '.join(differing)} stands there "
                f"({metadata['recipe']}); remove it or name another --work folder"
            )
        tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118  no mapping
    fit.history = [
        Epoch(**{**epoch, "held_out": Ranking(**epoch["held_out"])})
        for epoch in json.loads(metadata["history"])
    ]
    for name, parameter in fit.predictor.named_parameters():
        parameter.data.copy_(tensors[name])
        fit.kept[name] = tensors[KEPT + name].to(parameter.device)
        own = {key: tensors[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        moved = {
            key: value if key == "step" else value.to(parameter.device) for key, value in own.items()
        }
        fit.optimizer.state[parameter] = moved
