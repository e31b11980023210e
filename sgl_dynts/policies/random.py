"""Random tokens."""

from dataclasses import dataclass
from typing import Self
from zlib import crc32

import numpy as np
import torch

from sgl_dynts.policies.base import Candidates, ModelFacts, Policy, ScoredOnce, Sets
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
        return mix(candidates.positions + _salt(candidates, self.seed)) / (1 << 24)


@register
@dataclass(frozen=True)
class RandomPerHead(Policy):
    """Question and random tokens, drawn by every KV head for itself among what it holds.

    Drawn anew at each compaction, by a hash of seed, question, newest candidate, layer, head and place.
    """

    name = "random_per_head"
    color = "#bfc3c7"
    keeps = "a draw of every head at each compaction"
    paper = "Random Attention, arXiv 2609.03430"
    differs = "judged at compactions; answers stay"
    sets = Sets.PER_HEAD
    num_layers: int = 1
    heads: range = range(1)
    seed: int = 0

    @classmethod
    def build(cls, facts: ModelFacts) -> Self:
        """Make the policy for a served model."""
        return cls(facts.num_layers, range(facts.first_kv_head, facts.first_kv_head + facts.num_kv_heads))

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return [layers, kv_heads, n] numbers in [0, 1), 24 bits each."""
        salt = _salt(candidates, self.seed) + int(candidates.positions[-1])
        places = np.arange(len(candidates.scores), dtype=np.int64)
        layers = np.arange(self.num_layers, dtype=np.int64)[:, None, None]
        heads = np.asarray(self.heads, dtype=np.int64)[:, None]
        # Each number is hashed into the next, so that no two places of a layer and head share a sum.
        draws = mix(mix(mix(salt + layers) + heads) + places)
        return torch.from_numpy((draws / (1 << 24)).astype(np.float32))


def _salt(candidates: Candidates, seed: int) -> int:
    """A number of the request, the lowest 31 bits of it 0."""
    return crc32(np.asarray(candidates.question, dtype=np.int64).tobytes(), seed) << 31


def mix(numbers: np.ndarray) -> np.ndarray:
    """Hash int64 to int64 below 2**24, number by number: the finaliser of SplitMix64, its upper bits."""
    state = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(40)).astype(np.int64)
