"""SGLang's real pools, requests and radix tree: nothing of a compacted row is ever shared."""

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.common import checkpoint_kv_cache, release_kv_cache
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.sampling.sampling_params import SamplingParams

from sgl_dynts.config import DynTSConfig
from sgl_dynts.thinking import ThinkMarkers
from sglang_dynts.compaction_step import _window_maker, compact_due_requests
from sglang_dynts.radix_cache import DynTSRadixCache
from sglang_dynts.runtime import _RUNTIMES, DynTSRuntime

CONFIG = DynTSConfig(budget=20, local_window=6, keep_ratio=0.5)  # k 7, T 13, period 7
MARKERS = ThinkMarkers((1,), (2,))
NUM_SLOTS, NUM_ROWS, MAX_LEN = 200, 4, 100
PROMPT = [50, 51, 52, 53]
OFF = {"dynts": {"enabled": False}}


class Runner:
    """What the runtime's table of model runners is keyed by."""


class Engine:
    """A scheduler's books for one request at a time: prefill, decode, compact, release."""

    def __init__(self, cache_class=DynTSRadixCache, disable: bool = False) -> None:
        self.rows = ReqToTokenPool(NUM_ROWS, MAX_LEN, "cpu", enable_memory_saver=False)
        no_kv: Any = None
        self.slots = TokenToKVPoolAllocator(NUM_SLOTS, torch.float32, "cpu", no_kv, need_sort=False)
        self.cache = cache_class(
            CacheInitParams(
                disable=disable,
                req_to_token_pool=self.rows,
                token_to_kv_pool_allocator=self.slots,
                page_size=1,
                tree_components=(ComponentType.FULL,),
            )
        )
        self.cache.govern(_window_maker(CONFIG, MARKERS))
        runner = Runner()
        self.runtime = DynTSRuntime(NUM_SLOTS + 1, NUM_ROWS + 1, "cpu")
        self.rows.register_on_alloc_rows(self.runtime.reset_rows)
        _RUNTIMES[runner] = self.runtime
        self.scheduler = SimpleNamespace(
            tree_cache=self.cache,
            tp_worker=SimpleNamespace(model_runner=runner),
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.slots,
        )

    def prefill(self, tokens: list[int], custom: dict | None = None) -> Req:
        params = SamplingParams(custom_params=custom)
        return self.admit(Req(f"r{id(tokens)}", "", array("q", tokens), params))

    def admit(self, req: Req) -> Req:
        req.init_next_round_input(self.cache)
        req.lock = self.cache.lock(req.last_node)
        total = len(req.full_untruncated_fill_ids)
        matched = self.cache.path_device_indices(req.last_node)
        self.rows.alloc([req])
        row = self.rows.req_to_token[req.kv.req_pool_idx]
        row[: req.prefix_len] = matched
        row[req.prefix_len : total] = self.alloc(total - req.prefix_len)
        req.kv.kv_allocated_len = req.kv.kv_committed_len = req.extend_end = total
        checkpoint_kv_cache(req, self.cache)
        return req

    def alloc(self, count: int) -> torch.Tensor:
        slots = self.slots.alloc(count)
        assert slots is not None
        return slots

    def decode(self, req: Req, tokens: list[int]) -> None:
        for token in tokens:
            end = req.kv.kv_allocated_len
            self.rows.req_to_token[req.kv.req_pool_idx, end] = self.alloc(1)
            req.kv.kv_allocated_len = req.kv.kv_committed_len = end + 1
            req.output_ids.append(token)
            req.decode_batch_idx += 1
            self.compact(req)

    def compact(self, req: Req) -> None:
        seq_lens = torch.tensor([req.kv.kv_allocated_len])
        batch = SimpleNamespace(
            reqs=[req],
            seq_lens_cpu=seq_lens,
            seq_lens=seq_lens.clone(),
            seq_lens_sum=int(seq_lens),
            batch_is_full=True,
        )
        compact_due_requests(self.scheduler, batch)
        assert batch.seq_lens.tolist() == batch.seq_lens_cpu.tolist() == [req.kv.kv_allocated_len]

    def finish(self, req: Req) -> None:
        req.finished_reason = FINISH_LENGTH(length=len(req.output_ids))
        req.finished_len = len(req.output_ids)
        release_kv_cache(req, self.cache, checkpoint=True)

    def retract(self, req: Req) -> None:
        release_kv_cache(req, self.cache, checkpoint=False)
        req.reset_for_retract()

    def num_shared(self, tokens: list[int]) -> int:
        """How many tokens of a follow-up prompt come from the tree."""
        follow_up = self.prefill([*tokens, 99])
        shared = follow_up.num_matched_prefix_tokens
        follow_up.finished_reason = FINISH_LENGTH(length=0)
        follow_up.finished_len = 0
        release_kv_cache(follow_up, self.cache, checkpoint=False)
        return shared

    def check_conservation(self, *running: Req) -> None:
        held = sum(r.kv.kv_allocated_len - r.kv.cache_protected_len for r in running)
        in_tree = self.cache.evictable_size() + self.cache.protected_size()
        assert self.slots.available_size() + in_tree + held == NUM_SLOTS
        free = self.slots.free_pages.tolist() + self.slots.release_pages.tolist()
        assert len(set(free)) == len(free)


@pytest.fixture
def engine(serve) -> Engine:
    serve("--attention-backend", "dynts")
    return Engine()


def row_of(engine: Engine, req: Req) -> list[int]:
    return engine.rows.req_to_token[req.kv.req_pool_idx].tolist()


def num_dropped(engine: Engine, req: Req) -> int:
    window = engine.cache.window_of(req)
    assert window is not None
    return window.dropped


def thoughts(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def compacted_request(engine: Engine) -> tuple[Req, list[int]]:
    """A request that dropped seven of its thirty tokens or more."""
    output = thoughts(100, 30)
    req = engine.prefill(PROMPT)
    engine.decode(req, output)
    assert num_dropped(engine, req) > 0
    return req, output


def follow_up_after_a_compaction(engine: Engine) -> int:
    req, output = compacted_request(engine)
    engine.finish(req)
    return engine.num_shared([*PROMPT, *output])


def test_after_a_compaction_the_tree_gives_the_prompt_and_no_more(engine):
    assert follow_up_after_a_compaction(engine) == 4
    engine.check_conservation()


def test_without_the_clamp_a_follow_up_would_read_the_slots_of_other_tokens(engine, monkeypatch):
    monkeypatch.setattr(DynTSRadixCache, "checkpoint", UnifiedRadixCache.checkpoint)
    assert follow_up_after_a_compaction(engine) == 13


def test_a_compaction_frees_what_it_drops(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 15))
    assert req.kv.kv_allocated_len == 19
    assert engine.slots.available_size() == NUM_SLOTS - 19
    before, newest = row_of(engine, req), engine.slots.free_pages[0].item()
    engine.decode(req, [115])
    assert (req.kv.kv_allocated_len, req.kv.kv_committed_len) == (13, 13)
    assert engine.slots.available_size() == NUM_SLOTS - 13
    assert row_of(engine, req)[:4] == before[:4]
    assert row_of(engine, req)[7:13] == [*before[14:19], newest]
    assert row_of(engine, req)[13:] == [0] * (MAX_LEN - 13)
    assert engine.runtime.dropped[req.kv.req_pool_idx] == 7
    engine.check_conservation(req)


def test_the_report_counts_what_happened(engine):
    req, _ = compacted_request(engine)
    held = req.kv.kv_allocated_len
    engine.finish(req)
    assert engine.cache.report_of(req).as_dict(0) == {
        "enabled": True,
        "question_len": 4,
        "compactions": 3,
        "dropped_tokens": 21,
        "window_len": held,
        "peak_window_len": 20,
        "budget": 20,
        "local_window": 6,
        "keep_ratio": 0.5,
    }
    assert (engine.cache.totals.num_compactions, engine.cache.totals.num_dropped) == (3, 21)


def test_a_running_request_has_only_its_prompt_in_the_tree(engine):
    req, output = compacted_request(engine)
    assert engine.num_shared([*PROMPT, *output]) == 4
    assert engine.cache.protected_size() == 4
    engine.check_conservation(req)


def test_a_finished_request_that_dropped_nothing_is_shared_whole(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 5))
    engine.finish(req)
    assert engine.num_shared([*PROMPT, *thoughts(100, 5)]) == 9
    engine.check_conservation()


def test_a_switched_off_request_keeps_everything_and_is_shared_whole(engine):
    req = engine.prefill(PROMPT, OFF)
    engine.decode(req, thoughts(100, 40))
    assert req.kv.kv_allocated_len == 44
    engine.finish(req)
    assert engine.cache.report_of(req).as_dict(0)["enabled"] is False
    follow_up = engine.prefill([*PROMPT, *thoughts(100, 40), 99], OFF)
    assert follow_up.num_matched_prefix_tokens == 44


def test_a_second_turn_shares_a_long_first_prompt_whole(engine):
    question = thoughts(300, 50)
    engine.finish(engine.prefill(question))
    assert engine.num_shared(question) == 50


def test_a_shared_prompt_is_never_freed_under_the_other_request(engine):
    first, _ = compacted_request(engine)
    second = engine.prefill(PROMPT)
    engine.decode(second, thoughts(100, 30))
    assert row_of(engine, first)[:3] == row_of(engine, second)[:3]
    engine.check_conservation(first, second)
    engine.finish(first)
    engine.check_conservation(second)
    engine.finish(second)
    engine.check_conservation()


def test_a_retracted_request_starts_anew_and_is_matched_no_further_than_its_prompt(engine):
    other = engine.prefill(PROMPT, OFF)
    engine.decode(other, thoughts(100, 30))
    engine.finish(other)  # the tree now holds the very tokens that the next request thinks
    req, _ = compacted_request(engine)
    engine.retract(req)
    assert num_dropped(engine, req) == 0
    engine.check_conservation()
    engine.admit(req)
    assert (req.num_matched_prefix_tokens, req.kv.kv_allocated_len) == (4, 34)
    assert engine.cache.protected_size() == 4
    assert engine.runtime.dropped[req.kv.req_pool_idx] == 0
    req.decode_batch_idx = 1
    engine.compact(req)
    assert (req.kv.kv_allocated_len, num_dropped(engine, req)) == (13, 21)
    engine.check_conservation(req)
    engine.finish(req)
    engine.check_conservation()


def test_a_request_is_left_alone_until_its_prefill_is_processed(engine):
    req, _ = compacted_request(engine)
    engine.retract(req)
    engine.admit(req)
    engine.compact(req)
    assert req.kv.kv_allocated_len == 34


@pytest.mark.parametrize("attribute", ["finished_reason", "beam_group"])
def test_finished_and_beam_requests_are_left_alone(engine, attribute):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 15))
    setattr(req, attribute, FINISH_LENGTH(length=0))
    engine.decode(req, [115])
    assert req.kv.kv_allocated_len == 20


def test_with_the_radix_cache_disabled_compaction_still_frees(serve):
    serve("--attention-backend", "dynts", "--disable-radix-cache")
    engine = Engine(disable=True)
    req, output = compacted_request(engine)
    assert engine.slots.available_size() == NUM_SLOTS - req.kv.kv_allocated_len
    engine.finish(req)
    assert engine.slots.available_size() == NUM_SLOTS
    assert engine.num_shared([*PROMPT, *output]) == 0


def test_lengths_are_rebound_since_a_forward_may_still_read_the_old_ones(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 15))
    req.output_ids.append(115)
    engine.rows.req_to_token[req.kv.req_pool_idx, 19] = engine.alloc(1)
    req.kv.kv_allocated_len = req.kv.kv_committed_len = 20
    lens, lens_cpu = torch.tensor([20], dtype=torch.int32), torch.tensor([20])
    batch = SimpleNamespace(
        reqs=[req], seq_lens=lens, seq_lens_cpu=lens_cpu, seq_lens_sum=20, batch_is_full=True
    )
    compact_due_requests(engine.scheduler, batch)
    assert (lens.tolist(), lens_cpu.tolist()) == ([20], [20])
    assert (batch.seq_lens.tolist(), batch.seq_lens_cpu.tolist()) == ([13], [13])
    assert batch.seq_lens.dtype == torch.int32
    assert (batch.seq_lens_sum, batch.batch_is_full) == (None, False)
