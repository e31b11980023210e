"""What queries to come can be expected to take from a token, without any training."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch

from sgl_dynts.expected_attention import HORIZON, LayerQueries
from sgl_dynts.expected_layers import PairedQueries, expected_with_kernel, expected_with_torch
from sgl_dynts.policies.base import Candidates, ModelFacts, Policy, Sets
from sgl_dynts.policies.registry import register

PERIOD_OF_HORIZON = 64
"""Tokens between two compactions for which the horizon is as it stands."""


@register
@dataclass(frozen=True)
class Calibrated(Policy):
    """Expected attention (arXiv 2510.00636) times the size of the value, a set of tokens per KV head.

    log(E[a] |v|) + newest * z, where z is the place among the candidates, its mean 0 and its spread 1: a
    share of the newest, which repetitive text needs. Nothing is recorded: K, V and statistics of the
    model's queries suffice.
    """

    name = "calibrated"
    color = "#2a9d8f"
    keeps = "attention that the model's queries to come can be expected to pay, times the size of V"
    paper = "Expected Attention, arXiv 2510.00636"
    differs = "judged at every compaction; a share of the newest; rotations of the positions averaged"
    sets = Sets.PER_HEAD
    needs_calibration = True
    queries: tuple[LayerQueries, ...] = ()
    horizon: tuple[int, ...] = HORIZON
    newest: float = 0.3

    @classmethod
    def build(cls, facts: ModelFacts) -> Self:
        """Make the policy for a served model, its horizon as long as its tokens are held."""
        times = max(1, round(facts.period / PERIOD_OF_HORIZON))
        return cls(facts.queries, tuple(ahead * times for ahead in HORIZON))

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return [layers, kv_heads, n] float32."""
        expected = self.expected(candidates)
        return expected.log() + self.newest * standing(expected)

    def expected(self, candidates: Candidates) -> torch.Tensor:
        """Return [layers, kv_heads, n] float32: E[a] |v|."""
        assert self.queries, "a policy that needs a calibration was accepted by a server without one"
        layers = list(candidates.layers())
        in_pool_of_gpu = layers[0].stored_keys.is_cuda and layers[0].slots is not None
        if in_pool_of_gpu and self._paired is not None:
            expected = expected_with_kernel(layers, self._paired, candidates.newest, self.horizon)
        else:
            expected = expected_with_torch(layers, self.queries, candidates.newest, self.horizon)
        return expected[..., candidates.places]

    @cached_property
    def _paired(self) -> PairedQueries | None:
        """The queries as a GPU's kernel wants them; none where layers differ in their heads."""
        return PairedQueries.of(self.queries) if PairedQueries.fits(self.queries) else None


def standing(scores: torch.Tensor) -> torch.Tensor:
    """Return [n] float32: places from the oldest to the newest, with mean 0 and spread 1."""
    num = scores.shape[-1]
    places = torch.arange(num, dtype=torch.float32, device=scores.device) - (num - 1) / 2
    return places * (12 / max(1, num * num - 1)) ** 0.5
