"""What a server may have together: one table, from the lists that refuse, for documents and tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from sglang_dynts.boot.refusals import (
    DISAGGREGATION_REFUSALS,
    HIERARCHY_REFUSALS,
    RECURRENT_REFUSALS,
    SPECULATIVE_REFUSALS,
    TWO_POOL_REFUSALS,
    FlagRefusal,
)


@dataclass(frozen=True, eq=False)
class Feature:
    """Something that a server has, by its flags or by its model.

    ``sets`` are the resolved arguments that tell it, empty for a kind of model. ``refuses`` are the
    arguments that must keep their values beside it.
    """

    name: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    refuses: Sequence[FlagRefusal] = ()

    @property
    def is_model(self) -> bool:
        """Whether it is a kind of model, of which a server has one."""
        return not self.sets


TENSOR_PARALLEL = Feature("tensor parallelism", {"tp_size": 2})
ATTENTION_RANKS = Feature("data-parallel attention", {"attn_dp_size": 2})
NO_OVERLAP = Feature("no overlap", {"disable_overlap_schedule": True})
MIXED_CHUNKS = Feature("mixed chunks", {"enable_mixed_chunk": True})
NO_PREFIX_CACHE = Feature("no prefix cache", {"disable_radix_cache": True})
HIERARCHY = Feature("hierarchical cache", {"enable_hierarchical_cache": True}, HIERARCHY_REFUSALS)
DRAFTS = Feature("speculation", {"speculative_algorithm": "NGRAM"}, SPECULATIVE_REFUSALS)
QUERIES = Feature("recorded queries", {"dynts_observe_queries": 4})
WORKERS = Feature("tokenizer workers", {"tokenizer_worker_num": 2})
DECODE_SIDE = Feature("disaggregated decode", {"disaggregation_mode": "decode"}, DISAGGREGATION_REFUSALS)
SLIDING = Feature("sliding layers, one pool")
TWO_POOLS = Feature("a second KV pool", refuses=TWO_POOL_REFUSALS)
LATENTS = Feature("latents (MLA)")
STATES = Feature("recurrent states", refuses=RECURRENT_REFUSALS)

FEATURES = (
    *(TENSOR_PARALLEL, ATTENTION_RANKS, NO_OVERLAP, MIXED_CHUNKS, NO_PREFIX_CACHE, HIERARCHY, DRAFTS),
    *(QUERIES, WORKERS, DECODE_SIDE, SLIDING, TWO_POOLS, LATENTS, STATES),
)
Pair = frozenset[str]
"""Names of two features."""

REFUSED_BY_SGLANG = {frozenset({NO_PREFIX_CACHE.name, HIERARCHY.name})}
"""Pairs that SGLang 0.5.23 refuses itself."""
REFUSED_LATER = {
    *(frozenset({QUERIES.name, one.name}) for one in (SLIDING, TWO_POOLS, LATENTS)),
    frozenset({ATTENTION_RANKS.name, SLIDING.name}),
}
"""Pairs that are refused once the model is loaded: the attention of its layers is not read, or SGLang's
code of these models knows no attention ranks."""


def pairs() -> list[tuple[Feature, Feature]]:
    """Return every two features that one server could have; a server has one model."""
    return [(a, b) for a, b in combinations(FEATURES, 2) if not (a.is_model and b.is_model)]


def is_refused(a: Feature, b: Feature) -> bool:
    """Whether a server with both does not start."""
    named = pair_of(a, b) in REFUSED_BY_SGLANG | REFUSED_LATER
    return named or _refuses(a, b) or _refuses(b, a)


def pair_of(a: Feature, b: Feature) -> Pair:
    """Return the names of both."""
    return frozenset({a.name, b.name})


def _refuses(a: Feature, b: Feature) -> bool:
    return any(b.sets.get(one.field, one.neutral) != one.neutral for one in a.refuses)


def word_for(a: Feature, b: Feature) -> str:
    """Return what the documents say of two features; a test sees to it that what is served was run."""
    if a.is_model and b.is_model:
        return ""
    return "refused" if is_refused(a, b) else "run"
