"""Retracted requests: what is copied, what comes back, and what happens where nothing can."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_dynts.thinking import ThinkingTracker
from sglang_dynts.entry.host_copies import HostCopies, copy_bytes
from sglang_dynts.scheduling.resume import allow_beyond_pool
from sglang_dynts.scheduling.retraction import give_up_copy
from tests.seam.engine import CONFIG, NUM_SLOTS, OFF, PROMPT, Engine, request, thoughts


@pytest.fixture
def engine(serve) -> Engine:
    serve("--attention-backend", "dynts")
    return Engine()


def stores(engine: Engine) -> list[torch.Tensor]:
    """Everything that is kept per slot."""
    layers: Any = [*(engine.kv.k_buffer or ()), *(engine.kv.v_buffer or ())]
    return [*layers, engine.device.scores.scores]


def compacted(engine: Engine, first: int = 100):
    """A request that dropped 21 tokens and holds 14, its KV and scores told apart by slot."""
    req = engine.prefill(PROMPT)
    for token in thoughts(first, 31):
        engine.decode(req, [token])
        newest = engine.rows.req_to_token[req.kv.req_pool_idx, req.kv.kv_allocated_len - 1]
        for store in stores(engine):
            store[newest] = token + torch.rand(store[newest].shape)
    return req


def contents(engine: Engine, req, count: int) -> list[torch.Tensor]:
    slots = engine.rows.req_to_token[req.kv.req_pool_idx, :count].long()
    return [store[slots].clone() for store in stores(engine)]


def test_a_compacted_request_goes_on_with_the_same_kv_scores_and_positions(engine):
    req = compacted(engine)
    window = engine.window(req)
    held, dropped = req.kv.kv_allocated_len, window.dropped
    assert (held, dropped) == (14, 21)
    before = contents(engine, req, held - 1)
    engine.retract(req)
    assert (window.dropped, engine.copied(req)) == (21, 13)
    engine.check_conservation()
    other = engine.prefill(thoughts(500, 60), OFF)  # what was freed now belongs to somebody else
    others = engine.rows.req_to_token[other.kv.req_pool_idx, :60].long()
    for store in stores(engine):
        store[others] = store[engine.slots.free_pages] = -1

    engine.admit(req)
    assert (req.prefix_len, req.kv.kv_allocated_len, req.extend_end) == (14, 14, 14)
    assert req.output_ids[-1] == 130
    for was, now in zip(before, contents(engine, req, held - 1), strict=True):
        assert torch.equal(was, now)
    assert engine.device.dropped[req.kv.req_pool_idx] == 21
    assert engine.copied(req) is None
    engine.check_conservation(req, other)


def test_a_resumed_request_is_compacted_retracted_and_resumed_again(engine):
    req = compacted(engine)
    for round_ in range(3):
        engine.retract(req)
        engine.admit(req)
        engine.decode(req, thoughts(200 + 20 * round_, 10))
    numbers = engine.governed(req).as_dict(0)
    assert numbers["resumptions"] == 3
    assert engine.window(req).dropped == numbers["dropped_tokens"] > 21
    held = len(PROMPT) + len(req.output_ids) - numbers["dropped_tokens"]
    assert req.kv.kv_allocated_len == held
    engine.finish(req)
    engine.check_conservation()
    assert engine.num_shared([*PROMPT, *req.output_ids]) == 4


def test_a_compaction_that_the_forward_in_flight_did_not_see_is_undone(engine):
    """Its token is lost with the retraction; to come again, it needs the window it was computed on."""
    req = compacted(engine)
    engine.decode(req, thoughts(140, 5))
    window = engine.window(req)
    held = req.kv.kv_allocated_len + 1
    engine.rows.req_to_token[req.kv.req_pool_idx, held - 1] = newest = engine.alloc(1)
    req.kv.kv_allocated_len = req.kv.kv_committed_len = held
    req.output_ids.append(145)
    before, compactions = contents(engine, req, held - 1), len(engine.governed(req).compacted_at)
    assert newest not in engine.slots.free_pages
    engine.compact(req)
    assert (req.kv.kv_allocated_len, window.dropped) == (13, 28)
    engine.retract(req)
    assert (engine.copied(req), window.dropped) == (held - 1, 21)
    assert len(engine.governed(req).compacted_at) == compactions
    engine.check_conservation()

    engine.admit(req)
    for was, now in zip(before, contents(engine, req, held - 1), strict=True):
        assert torch.equal(was, now)
    req.decode_batch_idx = 1
    engine.compact(req)
    assert (req.kv.kv_allocated_len, window.dropped) == (13, 28)


def test_a_compaction_with_no_forward_in_flight_stands(engine):
    req = compacted(engine)
    engine.decode(req, thoughts(140, 6))
    req.output_ids.append(146)  # sampled, its forward not launched
    window = engine.window(req)
    assert window.dropped == 28
    engine.retract(req)
    assert (engine.copied(req), window.dropped) == (13, 28)


def test_only_the_newest_token_is_computed_by_a_resumed_request(engine):
    req = compacted(engine)
    engine.retract(req)
    req.init_next_round_input(engine.cache)
    assert req.prefix_len == 13
    assert list(req.full_untruncated_fill_ids[13:]) == [130]
    assert req.kv.cache_protected_len == 0


def test_what_was_never_compacted_is_computed_again(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 10))
    engine.retract(req)
    assert engine.copied(req) is None
    engine.admit(req)
    assert (req.num_matched_prefix_tokens, req.kv.kv_allocated_len) == (4, 14)


def test_what_was_never_compacted_but_fills_the_pool_is_copied(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 10))
    engine.capacity.pool_len = 15
    engine.retract(req)
    assert (engine.copied(req), engine.governor.lost) == (13, [])
    engine.admit(req)
    assert (req.prefix_len, req.kv.kv_allocated_len) == (14, 14)
    assert engine.device.dropped[req.kv.req_pool_idx] == 0


def test_a_pause_that_recomputes_copies_only_what_the_pool_cannot_hold(engine):
    req = compacted(engine)
    engine.retract(req, offload_kv=False)
    assert engine.copied(req) is None
    assert engine.window(req).dropped == 0
    engine.admit(req)
    assert req.kv.kv_allocated_len == 35
    req.decode_batch_idx = 1
    engine.compact(req)
    engine.compact(req)
    engine.capacity.pool_len = 30
    engine.retract(req, offload_kv=False)
    assert engine.copied(req)
    assert engine.governor.lost == []


def limited(engine: Engine, num_tokens: int) -> None:
    engine.governor.copies = HostCopies(copy_bytes(engine.governor.pools, num_tokens))


def test_the_bound_on_host_memory_holds_and_what_can_be_computed_again_makes_room(engine):
    limited(engine, 20)
    first, second = compacted(engine), compacted(engine, 300)
    engine.retract(first)
    assert engine.governor.copies.num_bytes == copy_bytes(engine.governor.pools, 13)
    engine.retract(second)
    assert engine.copied(first) is None
    assert engine.copied(second)
    assert engine.governor.copies.num_bytes <= engine.governor.copies.max_bytes
    engine.admit(first)
    assert first.kv.kv_allocated_len == 35
    engine.admit(second)
    assert second.kv.kv_allocated_len == 14
    engine.check_conservation(first, second)


def test_a_request_that_can_neither_be_copied_nor_computed_is_ended_with_its_reason(engine):
    limited(engine, 20)
    engine.capacity.pool_len = 30  # both are longer than this
    first, second = compacted(engine), compacted(engine, 300)
    engine.retract(first)
    engine.retract(second)
    assert engine.copied(first)
    assert engine.governor.lost == [second]
    sent = []
    engine.scheduler.waiting_queue = [first, second]
    engine.scheduler.send_abort_output = lambda output, req: sent.append((output, req))
    engine.compact()
    assert engine.scheduler.waiting_queue == [first]
    ((output, req),) = sent
    assert req is second
    assert output.finished_reason["status_code"] == 503
    assert "--dynts-host-memory-gb" in output.finished_reason["message"]


def test_a_copy_goes_with_its_request(engine):
    req = compacted(engine)
    engine.retract(req)
    assert engine.governor.copies.num_bytes > 0
    del req
    assert engine.governor.copies.num_bytes == 0


def clipped_to_pool(scheduler, req) -> None:
    most = NUM_SLOTS - len(req.origin_input_ids) - 2
    req.sampling_params.max_new_tokens = min(req.sampling_params.max_new_tokens, most)


def allowed(engine: Engine, asked: int, custom=None, limit=None, **attributes) -> int:
    engine.scheduler.model_config = SimpleNamespace(context_len=1000)
    engine.scheduler.max_new_tokens_limit = limit
    req = request(PROMPT, custom, length=asked)
    for name, value in attributes.items():
        setattr(req, name, value)
    allow_beyond_pool(clipped_to_pool, engine.scheduler, req)
    most = req.sampling_params.max_new_tokens
    assert most is not None
    return most


def test_a_governed_request_may_outgrow_the_pool_but_not_the_model(engine):
    assert allowed(engine, 100) == 100
    assert allowed(engine, 700) == 700
    assert allowed(engine, 5000) == 1000 - 4 - 2
    assert allowed(engine, 700, limit=300) == 300


def test_who_is_not_bounded_by_a_window_is_clipped_to_the_pool(engine):
    assert allowed(engine, 700, OFF) == 194
    assert allowed(engine, 700, {"dynts": {"budget": 500}}) == 194
    engine.governor.copies = HostCopies(0)
    assert allowed(engine, 700) == 194


@pytest.mark.parametrize("start", [-1, 0, len(PROMPT)], ids=["unset", "input_too", "output_only"])
def test_logprobs_change_neither_the_length_nor_what_a_retraction_leaves(engine, start):
    """SGLang sets ``logprob_start_len`` after the length; [] stands for no input logprobs asked for."""
    assert allowed(engine, 700, return_logprob=True) == 700
    req = compacted(engine)
    req.return_logprob, req.logprob_start_len = True, start
    req.logprob.input_token_logprobs_val = [] if start else [-1.0, -2.0, -3.0]
    engine.retract(req)
    assert engine.copied(req) == 13


def test_a_request_whose_input_logprobs_are_not_there_yet_is_computed_again(engine):
    req = compacted(engine)
    req.return_logprob, req.logprob_start_len = True, 0
    engine.retract(req)
    assert engine.copied(req) is None


def test_windows_know_nothing_of_copies_after_a_restart(engine):
    req = compacted(engine)
    engine.retract(req)
    give_up_copy(engine.governor, engine.governed(req))
    window = engine.window(req)
    assert isinstance(window.tracker, ThinkingTracker)
    assert (window.dropped, window.config) == (0, CONFIG)
    engine.admit(req)
    assert req.kv.kv_allocated_len == 35
