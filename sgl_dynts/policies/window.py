"""The newest tokens."""

import numpy as np

from sgl_dynts.policies.base import Candidates, ScoredOnce
from sgl_dynts.policies.registry import register


@register
class Recent(ScoredOnce):
    """Question and newest tokens, a sliding window.

    The window is at its full size only when a compaction is due, and shrinks to what the keep ratio
    leaves, as for every policy here; the usual baseline drops one token per step.
    """

    name = "window"
    color = "#00798c"
    keeps = "newest tokens"
    paper = "sliding window"
    differs = "shrinks at compactions, not at every token"

    def score_new(self, candidates: Candidates) -> np.ndarray:
        """Return the position."""
        return candidates.positions
