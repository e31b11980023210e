"""What keys are worth at the distances from which they will be read."""

from dataclasses import dataclass
from typing import Self

import torch

from sgl_dynts.distance_scores import DistantQueries
from sgl_dynts.policies.base import Candidates, ModelFacts, Policy, Sets, standard
from sgl_dynts.policies.registry import register


@register
@dataclass(frozen=True)
class TriAttentionPerHead(Policy):
    """TriAttention (arXiv 2604.04921): the logit at distances to come, and size where queries scatter.

    Each query head's scores have mean 0 and spread 1 over the candidates that are no answers; of the
    heads that share a KV head the largest counts. That is the paper's rule, and its code's mode with a
    set per layer and head. By default that code takes the mean over layers then, so that a KV head keeps
    the same tokens in all of them.
    """

    name = "triattention_per_head"
    color = "#e07a9b"
    keeps = "keys that the mean query meets at distances to come, and large ones where queries scatter"
    paper = "TriAttention, arXiv 2604.04921"
    differs = "each layer chooses by itself; the local window stays"
    sets = Sets.PER_HEAD
    needs_calibration = True
    queries: tuple[DistantQueries, ...] = ()

    @classmethod
    def build(cls, facts: ModelFacts) -> Self:
        """Make the policy for a served model."""
        return cls(tuple(map(DistantQueries.of, facts.queries)))

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return [layers, kv_heads, n] float32."""
        assert self.queries, "a policy that needs a calibration was accepted by a server without one"
        counts = candidates.scores != torch.inf
        layers = []
        for layer, queries in zip(candidates.layers(), self.queries, strict=True):
            by_query_head = queries.scores(layer.keys[candidates.places], candidates.newest)
            layers.append(standard(by_query_head, counts).amax(1))
        return torch.stack(layers)
