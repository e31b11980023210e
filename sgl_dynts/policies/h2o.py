"""Tokens that got most attention so far."""

import torch

from sgl_dynts.policies.base import Candidates, Policy, Sets
from sgl_dynts.policies.registry import register


@register
class HeavyHitters(Policy):
    """H2O, the Heavy-Hitter Oracle (arXiv 2306.14048): the tokens that got most attention so far.

    As in the paper a score is the attention a token has got, added up over every query since it was
    computed, its own included; what was dropped got its last. The paper chooses in each layer and head by
    itself; here these are averaged, for one choice. It drops one token per step and halves its budget
    between heavy hitters and newest tokens; here the windows are those of all policies. It judges the
    prompt too, which is the question here and stays. No kernel gives its attention out, so it is
    computed a second time at every step, in plain torch: this is slow.
    """

    name = "h2o"
    color = "#8d5a97"
    keeps = "attention received from every query since the token was computed, added up"
    paper = "H2O, arXiv 2306.14048"
    differs = (
        "heads and layers averaged; judged at compactions, not at every token; the local window "
        "is not half the budget; the question stays"
    )
    needs_queries = True
    needs_all_queries = True

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return the sums."""
        return candidates.received()


@register
class HeavyHittersPerHead(HeavyHitters):
    """H2O with a set of tokens in every KV head, as in its paper; else as `h2o`."""

    name = "h2o_per_head"
    color = "#b58fc1"
    differs = (
        "the queries that share a KV head averaged; judged at compactions, not at every token; the local "
        "window is not half the budget; the question stays"
    )
    sets = Sets.PER_HEAD
