"""The predictor's own choice."""

import torch

from sgl_dynts.policies.base import Candidates, Policy
from sgl_dynts.policies.registry import register


@register
class Predicted(Policy):
    """DynTS: the predictor's scores as they are."""

    name = "predictor"
    color = "#d1495b"
    keeps = "highest predicted scores"
    paper = "DynTS"
    needs_predictor = True

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return what stands in the pool."""
        return candidates.scores
