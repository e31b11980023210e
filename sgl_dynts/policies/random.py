"""Random tokens."""

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from sgl_dynts.policies.base import Candidates, ScoredOnce
from sgl_dynts.policies.registry import register


@register
@dataclass(frozen=True)
class Random(ScoredOnce):
    """Question and random tokens ("Random Attention", arXiv 2609.03430; there every head draws its own).

    Drawn by a hash of seed, question and position, so that ranks and runs agree.
    """

    name = "random"
    color = "#8a8d91"
    keeps = "a hash of question and position"
    paper = "Random Attention, arXiv 2609.03430"
    differs = "one draw for all heads"
    seed: int = 0

    def score_new(self, candidates: Candidates) -> np.ndarray:
        """Return numbers in [0, 1), 24 bits each."""
        salt = crc32(np.asarray(candidates.question, dtype=np.int64).tobytes(), self.seed)
        return mix(candidates.positions + (salt << 31)) / (1 << 24)


def mix(numbers: np.ndarray) -> np.ndarray:
    """Hash [n] int64 to [n] integers below 2**24: the finaliser of SplitMix64, its upper bits."""
    state = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state ^ (state >> np.uint64(31))) >> np.uint64(40)
