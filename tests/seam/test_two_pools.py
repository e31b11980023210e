"""Sliding layers in a pool of their own: what a compaction frees, and what it must leave alone.

The books are SGLang's own: its two pools, its allocator, its radix tree.
"""

from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from sglang_dynts.forward.kv_pools import is_compacted, refuse_unknown_pool
from sglang_dynts.scheduling import start
from sglang_dynts.scheduling.slots.pools import OnePool, TwoPools, pools_of
from tests.seam.engine import (
    CONFIG,
    NUM_SLOTS,
    OFF,
    POOL,
    PROMPT,
    Engine,
    thoughts,
)

WINDOW = CONFIG.local_window - 1
NUM_SLIDING = 60
FULL_LAYERS, SLIDING_LAYERS = [1, 3], [0, 2]


class TwoPoolEngine(Engine):
    components = (ComponentType.FULL, ComponentType.SWA)
    sees = WINDOW

    def make_pools(self) -> tuple[Any, Any]:
        kv = SWAKVPool(
            NUM_SLOTS,
            NUM_SLIDING,
            swa_attention_layer_ids=SLIDING_LAYERS,
            full_attention_layer_ids=FULL_LAYERS,
            **POOL,
        )
        slots = SWATokenToKVPoolAllocator(
            NUM_SLOTS, NUM_SLIDING, 1, torch.float32, "cpu", kv, need_sort=False
        )
        return kv, slots

    def decode(self, req: Req, tokens: list[int]) -> None:
        """As SGLang: each step slides the window first, counting the tokens seen."""
        for token in tokens:
            if req.decode_batch_idx:
                self.cache.evict_sliding_windows(req, req.seqlen - 1)
            super().decode(req, [token])

    def slid(self, req: Req) -> int:
        return req.kv.get_evicted_seqlen(ComponentType.SWA)

    def row(self, req: Req) -> torch.Tensor:
        return self.rows.req_to_token[req.kv.req_pool_idx, : req.kv.kv_allocated_len].long()

    def sliding_slots(self, req: Req) -> list[int]:
        """Of each token that a request holds its slot in the sliding pool, 0 for none."""
        return self.slots.translate_loc_from_full_to_swa(self.row(req)).tolist()

    def fill(self, req: Req) -> None:
        """Write numbers that tell tokens and layers apart into both pools."""
        row = self.row(req)
        for layer in (*FULL_LAYERS, *SLIDING_LAYERS):
            at = torch.tensor(self.sliding_slots(req)) if layer in SLIDING_LAYERS else row
            self.kv.get_key_buffer(layer)[at] = torch.arange(len(row))[:, None, None] + 100.0 * layer

    def check_conservation(self, *running: Req) -> None:
        """Free, in the tree and held are all slots there are, in both pools."""
        cache, slots = self.cache, self.slots
        held = sum(one.kv.kv_allocated_len - one.kv.cache_protected_len for one in running)
        tree = cache.full_evictable_size() + cache.full_protected_size()
        assert slots.full_available_size() + tree + held == NUM_SLOTS
        gone = sum(max(0, self.slid(one) - one.kv.cache_protected_len) for one in running)
        tree = cache.swa_evictable_size() + cache.swa_protected_size()
        assert slots.swa_available_size() + tree + held - gone == NUM_SLIDING
        for side in (slots.full_attn_allocator, slots.swa_attn_allocator):
            free = side.free_pages.tolist() + side.release_pages.tolist()
            assert len(set(free)) == len(free)


@pytest.fixture(autouse=True)
def _started(serve) -> None:
    serve("--attention-backend", "dynts")


@pytest.fixture(params=[False, True], ids=["tree", "no tree"])
def engine(request) -> TwoPoolEngine:
    return TwoPoolEngine(disable=request.param)


def test_the_pools_of_a_server_are_told_apart(engine):
    assert isinstance(engine.governor.pools, TwoPools)
    assert type(pools_of(Engine().slots, None)) is OnePool
    assert engine.governor.pools.num_slots == NUM_SLOTS
    assert engine.slots.size == NUM_SLIDING  # which is what a pool would be taken to hold


def test_compactions_free_slots_of_the_full_pool_alone(engine):
    req = engine.prefill(PROMPT)
    for first in range(100, 200, 10):
        engine.decode(req, thoughts(first, 10))
        engine.check_conservation(req)
    governed = engine.governed(req)
    assert governed.num_compactions >= 8
    assert governed.dropped == len(PROMPT) + 100 - req.kv.kv_committed_len
    engine.finish(req)
    engine.check_conservation()


def test_the_newest_tokens_keep_their_sliding_slots_and_no_other(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 50))
    slots = engine.sliding_slots(req)
    assert all(slots[engine.slid(req) :])
    assert engine.slid(req) <= len(slots) - CONFIG.local_window
    assert not any(slots[req.kv.cache_protected_len : engine.slid(req)])


def test_without_the_shift_slots_are_freed_twice(engine):
    """SGLang counts the tokens that a request has seen; its row is shorter. Its allocator notices."""
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 30))
    assert engine.governed(req).dropped > WINDOW
    with pytest.raises(AssertionError):
        UnifiedRadixCache.evict_sliding_windows(engine.cache, req, req.seqlen - 1)


def test_with_free_instead_of_free_full_slots_are_freed_twice(engine, monkeypatch):
    """The sliding slots of dropped tokens are gone already."""
    req = engine.prefill(PROMPT)
    monkeypatch.setattr(engine.slots, "free_full", engine.slots.free)
    with pytest.raises(AssertionError):
        engine.decode(req, thoughts(100, 30))


def test_a_local_window_of_one_less_is_noticed(monkeypatch):
    """The token in computation still sees the newest token that would be dropped."""
    monkeypatch.setattr(TwoPoolEngine, "sees", CONFIG.local_window)
    engine = TwoPoolEngine()
    req = engine.prefill(PROMPT)
    with pytest.raises(AssertionError, match="a sliding layer still sees what is dropped"):
        engine.decode(req, thoughts(100, 30))


def test_a_compacted_request_is_slid_as_seldom_as_others(engine, monkeypatch):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 18))  # a compaction slides by itself
    assert engine.governed(req).num_compactions == 1
    before = engine.slid(req)
    Engine.decode(engine, req, thoughts(120, 4))
    monkeypatch.setenv("SGLANG_SWA_EVICTION_INTERVAL", "8")
    engine.cache.evict_sliding_windows(req, req.seqlen - 1)
    assert engine.slid(req) == before
    monkeypatch.setenv("SGLANG_SWA_EVICTION_INTERVAL", "1")
    engine.cache.evict_sliding_windows(req, req.seqlen - 1)
    assert engine.slid(req) == req.kv.kv_committed_len - 1 - WINDOW > before


def test_a_round_slides_all_windows_where_the_sliding_pool_is_short(engine):
    reqs = [engine.prefill([50 + i, *PROMPT], custom=OFF) for i in range(2)]
    for req in reqs:
        Engine.decode(engine, req, thoughts(100, 20))  # SGLang has not slid anything yet
    assert [engine.slid(req) for req in reqs] == [0, 0]
    room = engine.slots.swa_available_size()
    taken = engine.slots.swa_attn_allocator.alloc(room - 2)
    engine.governor.pools.make_room(engine.cache, reqs, 2)
    assert [engine.slid(req) for req in reqs] == [0, 0]
    engine.governor.pools.make_room(engine.cache, reqs, 3)
    assert [engine.slid(req) for req in reqs] == [25 - 1 - WINDOW] * 2
    engine.slots.swa_attn_allocator.free(taken)
    engine.check_conservation(*reqs)


def test_rounds_look_at_the_full_pool(engine):
    pools = engine.governor.pools
    assert (pools.num_free(), engine.slots.available_size()) == (NUM_SLOTS, NUM_SLIDING)
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 10))
    engine.finish(req)
    assert pools.num_evictable(engine.cache) == engine.cache.full_evictable_size()


def test_a_copy_holds_what_sliding_layers_see_and_comes_back(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 60))
    engine.fill(req)
    held = req.kv.kv_committed_len - 1  # the newest token is computed again
    engine.retract(req)
    engine.check_conservation()
    assert engine.copied(req) == held
    copy = engine.governed(req).copy
    assert copy is not None
    assert copy.num_bytes == held * (2 * 2 * 2 * 2 * 4 + 4) + WINDOW * 2 * 2 * 2 * 2 * 4
    engine.admit(req)
    row, slots = engine.row(req), engine.sliding_slots(req)
    assert not any(slots[: held - WINDOW])
    for layer in FULL_LAYERS:
        assert engine.kv.get_key_buffer(layer)[row[:held], 0, 0].tolist() == [
            place + 100 * layer for place in range(held)
        ]
    for layer in SLIDING_LAYERS:
        seen = engine.kv.get_key_buffer(layer)[slots[held - WINDOW : held], 0, 0].tolist()
        assert seen == [place + 100 * layer for place in range(held - WINDOW, held)]
    engine.check_conservation(req)
    engine.decode(req, thoughts(200, 30))
    engine.check_conservation(req)
    engine.finish(req)
    engine.check_conservation()


def test_a_resumed_request_leaves_nothing_in_the_tree_that_lacks_its_window():
    """Its sliding layers hold no K and V of the question's end, so nobody could go on from there."""
    engine = TwoPoolEngine()
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 60))
    engine.retract(req)
    engine.cache.evict_for_alloc(EvictParams(num_tokens=NUM_SLOTS))
    engine.admit(req)
    engine.finish(req)
    assert engine.cache.full_evictable_size() == 0
    engine.check_conservation()


def test_a_prompt_is_shared_after_compactions():
    engine = TwoPoolEngine()
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 60))
    engine.finish(req)
    assert engine.num_shared(PROMPT) == len(PROMPT)
    engine.check_conservation()


def test_a_pool_that_is_not_known_is_refused_on_either_side(engine):
    refuse_unknown_pool(engine.kv)

    class Other(type(engine.kv.swa_kv_pool)):
        pass

    engine.kv.swa_kv_pool.__class__ = Other
    with pytest.raises(ValueError, match=r"^DynTS does not know Other, "):
        refuse_unknown_pool(engine.kv)


def test_the_start_recommends_a_sliding_pool_that_is_no_larger_than_needed(engine, caplog, monkeypatch):
    pools = engine.governor.pools
    with caplog.at_level("INFO", logger=start.logger.name):
        start.recommend_ratio(pools)
        assert caplog.text == ""
        monkeypatch.setattr(engine.slots, "_size_swa", NUM_SLOTS)
        start.recommend_ratio(pools)
    assert "--swa-full-tokens-ratio 0.1 makes it larger" in caplog.text


def test_compactions_reach_full_layers_alone(engine):
    class Layer:
        def __init__(self, number: int) -> None:
            self.layer_id = number

    layers: Any = [Layer(number) for number in range(4)]
    assert [one.layer_id for one in layers if is_compacted(one, engine.kv)] == FULL_LAYERS
    assert all(is_compacted(one, Engine().kv) for one in layers)
