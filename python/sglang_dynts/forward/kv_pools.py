"""SGLang's KV pools: which of them a compaction may free single tokens of."""

from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

KNOWN = (MHATokenToKVPool, MLATokenToKVPool)
"""Pools in which a token is its slot, the same in every layer, and nothing else is kept of it."""


def refuse_unknown_pool(pool) -> None:
    """Refuse a pool that keeps more of a token than its K and V: an index, a state, another page.

    Raises:
        ValueError: naming the pool.
    """
    sides = (full_side(pool), pool.swa_kv_pool) if type(pool) is SWAKVPool else (full_side(pool),)
    unknown = [side for side in sides if type(side) not in KNOWN]
    if unknown:
        raise ValueError(
            f"DynTS does not know {type(unknown[0]).__name__}, SGLang's KV pool for this model, so "
            "single tokens cannot be freed there; serve the model without DynTS"
        )


def keeps_by_head(pool) -> bool:
    """Whether a pool keeps K and V by head first, where no token can be named by its slot."""
    side = full_side(pool)
    return isinstance(side, MHATokenToKVPool) and side.use_hnd


def full_side(pool):
    """Return the pool of the layers that a compaction reaches.

    Other layers slide in a pool of their own, or they keep a recurrent state, which is of no one token.
    """
    return pool.full_kv_pool if isinstance(pool, SWAKVPool | HybridLinearKVPool) else pool


def is_compacted(layer: RadixAttention, pool) -> bool:
    """Whether a compaction reaches a layer: not one that slides in a pool of its own."""
    return not isinstance(pool, SWAKVPool) or not pool.layers_mapping[layer.layer_id][1]


def num_slots(allocator) -> int:
    """Slots that rows may name, the padding slot 0 not counted: of two pools those of full attention."""
    is_two = isinstance(allocator, SWATokenToKVPoolAllocator)
    return allocator.size_full if is_two else allocator.size
