"""SGLang's KV pools as compactions, copies and rounds see them: one of all layers, or two.

Models like gpt-oss keep sliding layers in a pool of their own. A row of SGLang's names slots of the full
pool; a mapping says which slot of the sliding pool belongs to each, 0 for none. A request's sliding slots
are freed as its window slides, up to a column of its row that SGLang calls its eviction cursor.
"""

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.mem_cache.allocation import alloc_token_slots
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from sgl_dynts.window import Cut
from sglang_dynts.entry.host_copies import bytes_per_token
from sglang_dynts.forward.kv_pools import full_side, num_slots


class OnePool:
    """All layers in one pool: a token's slot is the same in each of them."""

    def __init__(self, allocator) -> None:
        self.allocator = allocator

    @property
    def num_slots(self) -> int:
        """Slots that rows may name."""
        return num_slots(self.allocator)

    @property
    def kv(self) -> Any:
        """SGLang's pool of K and V."""
        return self.allocator.get_kvcache()

    def num_free(self) -> int:
        """Slots that a row may get at once."""
        return self.allocator.available_size()

    def num_evictable(self, cache) -> int:
        """Slots that the prefix cache would give up."""
        return cache.evictable_size()

    def make_room(self, cache, reqs: Sequence[Any], num_tokens: int) -> None:
        """Free what running requests hold for nothing, if the next step lacks it."""

    def prepare(self, cache, reqs: Sequence[Any]) -> None:
        """Make requests ready to be compacted."""

    def give_back(self, reqs: Sequence[Any], cuts: Sequence[Cut], freed: torch.Tensor) -> None:
        """Free what compactions dropped.

        Args:
            reqs: that were compacted.
            cuts: how, the same number.
            freed: slots of all of them, int.
        """
        self.allocator.free(freed)

    def take_for_copy(self, cache, req, num_tokens: int) -> torch.Tensor:
        """Allocate the slots that a request's copy is written to: [num_tokens] int64."""
        return alloc_token_slots(cache, num_tokens)

    def read(self, slots: torch.Tensor) -> Any:
        """Copy what is in these slots, [n] int64, to the host."""
        return self.allocator.get_cpu_copy(slots)

    def write(self, copy: Any, slots: torch.Tensor) -> None:
        """Write what :meth:`read` gave into as many slots."""
        self.allocator.load_cpu_copy(copy, slots)

    def num_bytes(self, num_tokens: int) -> int:
        """Bytes of a copy of so many tokens."""
        return num_tokens * bytes_per_token(self.kv)


class TwoPools(OnePool):
    """Full layers in one pool, sliding layers in another; a compaction frees slots of the first alone.

    What it drops must be out of every sliding layer's sight, that of a token in computation included. So
    ``window``, the tokens that these layers see before their own, is less than any local window.
    """

    def __init__(self, allocator, window: int) -> None:
        super().__init__(allocator)
        self.window = window

    def num_free(self) -> int:
        """Slots of the full pool; the sliding one is seen to by :meth:`make_room`."""
        return self.allocator.full_available_size()

    def num_evictable(self, cache) -> int:
        """Slots of the full pool that the prefix cache would give up."""
        return cache.full_evictable_size()

    def make_room(self, cache, reqs: Sequence[Any], num_tokens: int) -> None:
        """Slide all windows where the sliding pool is short; SGLang does it once in many tokens."""
        free = self.allocator.swa_available_size()
        if free < num_tokens and free + cache.swa_evictable_size() < num_tokens:
            self.prepare(cache, [req for req in reqs if req.kv.holds_kv and req.decode_batch_idx >= 1])

    def prepare(self, cache, reqs: Sequence[Any]) -> None:
        """Slide windows as far as the forward in flight allows, so that nothing dropped is in sight."""
        self.allocator.free_group_begin()
        for req in reqs:
            cache.slide(req, req.kv.kv_committed_len - 1)
        self.allocator.free_group_end()

    def give_back(self, reqs: Sequence[Any], cuts: Sequence[Cut], freed: torch.Tensor) -> None:
        """Free slots of the full pool; those of the sliding one are gone, so its cursors move along."""
        for req, cut in zip(reqs, cuts, strict=True):
            slid = req.kv.get_evicted_seqlen(ComponentType.SWA)
            first_local = cut.window_len - cut.local_window
            assert slid >= first_local, f"a sliding layer still sees what is dropped: {slid=} {cut=}"
            req.kv.set_evicted_seqlen(ComponentType.SWA, slid - cut.num_dropped)
        self.allocator.free_full(freed)

    def take_for_copy(self, cache, req, num_tokens: int) -> torch.Tensor:
        """Allocate slots of both pools, of the sliding one for the tokens that its layers still see."""
        allocator, seen = self.allocator, min(num_tokens, self.window)
        lacking = (num_tokens - allocator.full_available_size(), seen - allocator.swa_available_size())
        if max(lacking) > 0:
            full, sliding = (max(0, number) for number in lacking)
            cache.evict_for_alloc(EvictParams(num_tokens=full, swa_num_tokens=sliding))
        slots = allocator.full_attn_allocator.alloc(num_tokens)
        peers = allocator.swa_attn_allocator.alloc(seen)
        assert slots is not None, f"admitted without room: {num_tokens=} {allocator.debug_print()}"
        assert peers is not None, f"admitted without room: {seen=} {allocator.debug_print()}"
        allocator.set_full_to_swa_mapping(slots[num_tokens - seen :], peers)
        req.kv.set_evicted_seqlen(ComponentType.SWA, num_tokens - seen)
        return slots

    def read(self, slots: torch.Tensor) -> Any:
        """Copy all of the full layers, and of the sliding ones what they still see."""
        peers = self._peers_in_sight(slots)
        return self.kv.full_kv_pool.get_cpu_copy(slots), self.kv.swa_kv_pool.get_cpu_copy(peers)

    def write(self, copy: Any, slots: torch.Tensor) -> None:
        """Write what :meth:`read` gave into slots of :meth:`take_for_copy`."""
        full, sliding = copy
        self.kv.full_kv_pool.load_cpu_copy(full, slots)
        self.kv.swa_kv_pool.load_cpu_copy(sliding, self._peers_in_sight(slots))

    def num_bytes(self, num_tokens: int) -> int:
        """Bytes of a copy of so many tokens."""
        seen = min(num_tokens, self.window)
        sliding = self.kv.swa_kv_pool
        return num_tokens * bytes_per_token(full_side(self.kv)) + seen * bytes_per_token(sliding)

    def _peers_in_sight(self, slots: torch.Tensor) -> torch.Tensor:
        """[at most window] int64, where the sliding pool holds the newest of some tokens."""
        newest = slots[max(0, len(slots) - self.window) :]
        return self.allocator.translate_loc_from_full_to_swa(newest)


def pools_of(allocator, window: int | None) -> OnePool:
    """Return how a server's KV pools are to be treated.

    Args:
        allocator: SGLang's of the KV slots.
        window: tokens before its own that a sliding layer sees; None where the cache knows of none.
    """
    if not isinstance(allocator, SWATokenToKVPoolAllocator):
        return OnePool(allocator)
    assert window is not None, "sliding layers have a window"
    return TwoPools(allocator, window)
