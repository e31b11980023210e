"""Fit an importance predictor to targets by weighted least squares."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_dynts.predictor import ImportancePredictor


@dataclass(frozen=True)
class FitRecipe:
    """How a predictor is fitted; hidden layers are d * `widen` and d * `narrow` wide.

    A token weighs 1 + `emphasis` * target in the loss. Whether a token will be read cannot always be
    told when it is written; with the emphasis it is scored as what it would be worth if it is.
    """

    seed: int = 1
    num_steps: int = 2500
    batch_size: int = 4096
    learning_rate: float = 1e-2
    warmup_steps: int = 50
    clip_norm: float = 1.0
    emphasis: float = 3.0
    widen: float = 2.0
    narrow: float = 0.5


def fit_predictor(hidden: Tensor, targets: Tensor, recipe: FitRecipe) -> ImportancePredictor:
    """Return a predictor of `targets` from `hidden`, in float32.

    Args:
        hidden: [n, d], the states after the final norm of n thinking tokens.
        targets: [n], at least 0, in any unit: they are divided by their mean first.
        recipe: sizes, steps and seed.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    predictor = _new_predictor(hidden, recipe)
    targets = targets / targets.mean()
    optimizer = torch.optim.Adam(predictor.parameters())
    for step in range(recipe.num_steps):
        rows = torch.randint(len(hidden), (recipe.batch_size,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(recipe, step)
        optimizer.zero_grad(set_to_none=True)
        errors = predictor(hidden[rows].float()) - targets[rows]
        ((1 + recipe.emphasis * targets[rows]) * errors.square()).mean().backward()
        torch.nn.utils.clip_grad_norm_(predictor.parameters(), recipe.clip_norm)
        optimizer.step()
    return predictor.requires_grad_(False).eval()


def _new_predictor(hidden: Tensor, recipe: FitRecipe) -> ImportancePredictor:
    """Return an untrained predictor whose first layer is scaled to inputs of this size."""
    width = hidden.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        sizes = (int(width * recipe.widen), int(width * recipe.narrow))
        predictor = ImportancePredictor(width, sizes)
    with torch.no_grad():
        next(predictor.parameters()).div_(hidden.float().square().mean().sqrt())
    return predictor


def _learning_rate(recipe: FitRecipe, step: int) -> float:
    """Warm up linearly, then fall by a half cosine."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.num_steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
