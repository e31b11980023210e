"""Attention sinks and the newest tokens."""

from dataclasses import dataclass

import numpy as np

from sgl_dynts.policies.base import ABOVE_ALL_POSITIONS, Candidates, ScoredOnce
from sgl_dynts.policies.registry import register


@register
@dataclass(frozen=True)
class Streaming(ScoredOnce):
    """StreamingLLM (arXiv 2309.17453): attention sinks and the newest tokens.

    Its sinks are the first tokens of the sequence, which the question holds here anyway; so ``num_sinks``
    counts thinking tokens. RoPE positions stay the original ones; the paper's count within the cache.
    """

    name = "streaming"
    color = "#66a182"
    keeps = "first 4 thinking tokens, then newest"
    paper = "StreamingLLM, arXiv 2309.17453"
    differs = "the sequence's own sinks are the question's; positions do not move"
    num_sinks: int = 4

    def score_new(self, candidates: Candidates) -> np.ndarray:
        """Return the position, sinks above all."""
        is_sink = candidates.positions < len(candidates.question) + self.num_sinks
        return np.where(is_sink, ABOVE_ALL_POSITIONS, candidates.positions)
