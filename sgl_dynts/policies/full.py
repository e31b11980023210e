"""The full cache: who drops nothing."""

import torch

from sgl_dynts.policies.base import Candidates, Policy
from sgl_dynts.policies.registry import register


@register
class Full(Policy):
    """Keeps everything. A request that follows it has no window, so nobody asks it for scores."""

    name = "full"
    color = "#000000"
    keeps = "everything"
    differs = "never compacted"

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Refuse: nothing is ever to be dropped."""
        raise AssertionError("a request with the full cache was compacted")
