"""A decode server's queue: who gets slots, and what becomes of a request that loses them."""

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_dynts.scheduling.capacity_state import DecodeStep
from sglang_dynts.scheduling.handed_over.hooks import compact_on_decode_side
from sglang_dynts.scheduling.handed_over.queue import DynTSPreallocQueue
from tests.seam.engine import NUM_SLOTS, OFF, PROMPT, Engine, batch_of, request, thoughts

RETAINED, MEAN = 13, 2  # T of CONFIG with a short question, and a quarter of its period of 7
STOCK = 10
"""Slots that SGLang reserves for the tokens of each request."""


@pytest.fixture
def engine(serve) -> Engine:
    serve("--attention-backend", "dynts")
    engine = Engine(disable=True)  # a decode server has no prefix cache
    engine.capacity.answers.tokens = 0
    engine.governor.gets_prompts = True
    return engine


def queue_beside(engine: Engine, *running) -> Any:
    """The queue as it is after its first look at who is there."""
    queue: Any = DynTSPreallocQueue.__new__(DynTSPreallocQueue)
    queue.tree_cache, queue.scheduler = engine.cache, engine.scheduler
    queue.token_to_kv_pool_allocator = engine.slots
    queue.token_to_kv_pool, queue.req_to_token_pool = engine.kv, engine.rows
    queue.num_reserved_decode_tokens = STOCK
    queue.transfer_queue = SimpleNamespace(queue=[])
    queue.queue, queue.retracted_queue, queue._taken = [object()], [], []
    if running:
        engine.compact(*running)
    engine.scheduler.running_batch = batch_of(*running) if running else SimpleNamespace(reqs=[])
    engine.scheduler.disagg_decode_prealloc_queue = queue
    return queue


def budget(queue: DynTSPreallocQueue) -> int:
    return queue._allocatable_token_budgets(retractable_tokens=0)


def asks(queue: DynTSPreallocQueue, req) -> int:
    return queue._required_admission_tokens(req, len(req.origin_input_ids), 0, 0)


def test_a_new_request_asks_for_what_its_window_takes_on_average(engine):
    queue = queue_beside(engine)
    assert budget(queue) == NUM_SLOTS
    assert asks(queue, request(thoughts(300, 4), length=5000)) == RETAINED + MEAN
    assert asks(queue, request(thoughts(300, 4), length=3)) == 4 + 3
    assert asks(queue, request(thoughts(300, 4), OFF, length=100)) == 4 + 100


def test_a_window_above_its_mean_offers_the_difference_but_only_what_is_free_is_taken(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 14))  # 18 held, less than the budget of 20
    queue = queue_beside(engine, req)
    assert budget(queue) == NUM_SLOTS - RETAINED - MEAN
    held = engine.slots.alloc(engine.slots.available_size() - 3)
    assert asks(queue, request(thoughts(300, 4), length=5000)) > NUM_SLOTS
    assert engine.capacity.wanted == 4
    engine.slots.free(held)
    assert asks(queue, request(thoughts(300, 4), length=5000)) == RETAINED + MEAN


def test_where_steps_draft_their_slots_are_asked_for_too(engine):
    engine.capacity.step = DecodeStep(num_tokens=3, spare_slots=6)
    queue, coming = queue_beside(engine), engine.prefill(PROMPT)
    engine.governor.note_lengths(coming)
    new = request(thoughts(300, 4), length=5000)
    assert asks(queue, new) == RETAINED + MEAN + 6
    engine.slots.alloc(engine.slots.available_size() - (4 + 6 + 5))
    assert asks(queue, new) == RETAINED + MEAN + 6
    queue.transfer_queue.queue.append(SimpleNamespace(req=coming))
    assert asks(queue, new) > NUM_SLOTS
    assert engine.capacity.wanted == 4 + 6


def test_a_request_whose_prompt_is_still_coming_is_counted(engine):
    queue, req = queue_beside(engine), engine.prefill(PROMPT)
    engine.governor.note_lengths(req)
    queue.transfer_queue.queue.append(SimpleNamespace(req=req))
    assert budget(queue) == NUM_SLOTS - RETAINED - MEAN
    queue._taken.append(req)  # once
    assert budget(queue) == NUM_SLOTS - RETAINED - MEAN


def test_a_request_without_a_window_keeps_sglangs_reserve_and_room_to_end(engine):
    req = engine.prefill(PROMPT, OFF)
    req.sampling_params.max_new_tokens = 6
    engine.decode(req, thoughts(100, 2))
    queue = queue_beside(engine, req)
    engine.governor.note_lengths(req)
    assert budget(queue) == NUM_SLOTS - 6 - STOCK
    req.sampling_params.max_new_tokens = 100
    assert budget(queue) == NUM_SLOTS - 6 - (4 + 100 - 6)


def test_a_retracted_window_comes_back_to_as_many_slots_as_it_held(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 40))
    held = req.kv.kv_committed_len
    assert engine.window(req).dropped > 0
    engine.retract(req)
    assert engine.copied(req) == held - 1
    queue = queue_beside(engine)
    assert queue._pre_alloc_fill_len(req) == held - 1
    queue.retracted_queue = [req]
    asked, _ = queue._prealloc_required_tokens(req)
    assert asked == max(RETAINED + MEAN, held)
    assert budget(queue) == NUM_SLOTS - asked
    assert queue.somebody_waits()


def test_what_was_never_compacted_is_copied_too(engine):
    """Nobody could compute its tokens again."""
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 5))
    engine.retract(req)
    assert engine.copied(req) == 4 + 5 - 1


def test_a_request_that_does_not_fit_in_host_memory_cannot_go_on(engine):
    engine.governor.copies.max_bytes = 1
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 5))
    assert engine.retract(req) is False
    assert engine.governor.lost == []


def test_a_prompt_is_a_question_as_a_whole(engine):
    req = engine.prefill([*PROMPT, 1, 60, 61, 62])
    assert engine.governed(req).question_len == 8
    assert engine.window(req).tracker.thinking


def test_compactions_make_room_for_one_that_waits(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 14))
    queue = queue_beside(engine, req)
    queue.queue = [SimpleNamespace(waiting_for_input=True)]
    engine.slots.alloc(engine.slots.available_size() - 1)
    engine.capacity.wanted = 4
    before = engine.slots.available_size()
    compact_on_decode_side(engine.scheduler, running_batch=engine.scheduler.running_batch)
    assert engine.window(req).dropped > 0
    assert engine.slots.available_size() > before


def test_a_server_without_dynts_counts_as_sglang_counts(engine):
    queue = queue_beside(engine)
    engine.cache.governor = None
    req = request(thoughts(300, 4), length=50)
    assert queue._pre_alloc_fill_len(req) == 4
    assert asks(queue, req) == max(4 + STOCK, 4 + 50)
