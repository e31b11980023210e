"""The predictor upside down."""

import torch

from sgl_dynts.policies.base import Candidates, Policy
from sgl_dynts.policies.registry import register


@register
class Bottom(Policy):
    """The predictor upside down, as the DynTS paper's ablation has it: the lowest scores are kept."""

    name = "bottom"
    color = "#2e4057"
    keeps = "lowest predicted scores"
    paper = "DynTS's ablation"
    needs_predictor = True

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return predicted scores with a minus; a survivor of an earlier time has its minus already."""
        return -candidates.scores.abs()
