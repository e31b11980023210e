"""SGLang's KV pools: which of them a compaction may free single tokens of."""

from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool

KNOWN = (MHATokenToKVPool, MLATokenToKVPool)
"""Pools in which a token is its slot, the same in every layer, and nothing else is kept of it."""


def refuse_unknown_pool(pool) -> None:
    """Refuse a pool that keeps more of a token than its K and V: an index, a state, another page.

    Raises:
        ValueError: naming the pool.
    """
    if type(pool) not in KNOWN:
        raise ValueError(
            f"DynTS does not know {type(pool).__name__}, SGLang's KV pool for this model, so single "
            "tokens cannot be freed there; serve the model without DynTS"
        )


def keeps_by_head(pool) -> bool:
    """Whether a pool keeps K and V by head first, where no token can be named by its slot."""
    return isinstance(pool, MHATokenToKVPool) and pool.use_hnd
