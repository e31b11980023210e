"""Separators and the newest tokens."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import numpy as np

from sgl_dynts.policies.base import ABOVE_ALL_POSITIONS, Candidates, ModelFacts, ScoredOnce
from sgl_dynts.policies.registry import register


@register
@dataclass(frozen=True)
class Separators(ScoredOnce):
    """SepLLM (arXiv 2412.12094), its training-free form: separators before others, newest first.

    The paper keeps initial tokens and neighbours too, which question and local window are here, and
    bounds its separators by a number of their own; here they share the selection with the rest.
    """

    name = "sepllm"
    color = "#edae49"
    keeps = "newest separators, then newest"
    paper = "SepLLM, arXiv 2412.12094, training-free"
    differs = "separators share the selection's size"
    token_ids: Collection[int]

    @classmethod
    def build(cls, facts: ModelFacts) -> Self:
        """Take the separators of the model's tokenizer."""
        return cls(facts.separators)

    def score_new(self, candidates: Candidates) -> np.ndarray:
        """Return the position, separators above all others."""
        separates = np.isin(candidates.token_ids, list(self.token_ids))
        return candidates.positions + ABOVE_ALL_POSITIONS * separates
