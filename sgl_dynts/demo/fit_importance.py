"""Fit the demo's predictor: attention targets of the demo model on its own training problems."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sgl_dynts.demo.ledger import Problem, Vocabulary
from sgl_dynts.demo.model import DemoModel
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.fit import FitRecipe, fit_predictor
from sgl_dynts.training.targets import far_attention

FAR_DISTANCE = 128
TARGET_NAME = f"far_attention_max_{FAR_DISTANCE}"


def train_predictor(
    model: DemoModel, problems: Iterable[Problem], recipe: FitRecipe
) -> ImportancePredictor:
    """Return a predictor fitted to the thinking tokens of `problems`."""
    hidden, targets = collect(model, problems)
    return fit_predictor(hidden, targets, recipe)


def collect(model: DemoModel, problems: Iterable[Problem]) -> tuple[Tensor, Tensor]:
    """Return (hidden [n, d], targets [n] float32) of the thinking tokens of reference traces.

    The model's greedy traces are these very texts. The end of each, where no token is far enough
    away to count and every target is 0 by definition, is left out.
    """
    vocabulary = Vocabulary()
    parts = [_collect_one(model, vocabulary, problem) for problem in problems]
    return torch.cat([hidden for hidden, _ in parts]), torch.cat([target for _, target in parts])


@torch.no_grad()
def trace_targets(model: DemoModel, vocabulary: Vocabulary, problem: Problem) -> tuple[Tensor, Tensor]:
    """Return (hidden [s, d], targets [s] float32) of a whole problem, question and answer included."""
    ids = vocabulary.encode(f"{problem.prompt} {problem.completion}")
    hidden, attention = model.mean_attention(torch.tensor([ids]))
    return hidden[0], far_attention(attention[0], FAR_DISTANCE)


def _collect_one(model: DemoModel, vocabulary: Vocabulary, problem: Problem) -> tuple[Tensor, Tensor]:
    hidden, targets = trace_targets(model, vocabulary, problem)
    thinking = slice(len(problem.prompt.split()), len(targets) - FAR_DISTANCE - 1)
    return hidden[thinking].clone(), targets[thinking].clone()
