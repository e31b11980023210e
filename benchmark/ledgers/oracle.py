"""The true importance of a reference trace's tokens, which no server can know."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.ledgers.model import DemoModel
from sgl_dynts.demo.ledger import Problem, Vocabulary
from sgl_dynts.training.targets import far_attention

FAR_DISTANCE = 128


@torch.no_grad()
def trace_targets(model: DemoModel, vocabulary: Vocabulary, problem: Problem) -> Tensor:
    """Return the most that any far token reads each token of a problem: [s] float32, answer included."""
    ids = vocabulary.encode(f"{problem.prompt} {problem.completion}")
    _, attention = model.mean_attention(torch.tensor([ids], device=model.device))
    return far_attention(attention[0], FAR_DISTANCE)
