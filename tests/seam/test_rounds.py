"""A round over the running requests: who is compacted early, and what else it sees to."""

import pytest
import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req

from sglang_dynts.scheduling.round import compact_requests
from tests.seam.engine import OFF, Engine, batch_of, thoughts


@pytest.fixture
def engine(serve) -> Engine:
    serve("--attention-backend", "dynts")
    return Engine()


def running(engine: Engine, first: int, generated: int, custom: dict | None = None) -> Req:
    """A request of four question tokens that was never compacted."""
    req = engine.prefill(thoughts(first, 4), custom)
    for token in thoughts(first + 4, generated):
        engine.decode(req, [token])
    return req


def leave_free(engine: Engine, count: int) -> None:
    engine.alloc(engine.slots.available_size() - count)


def lens(*reqs: Req) -> list[int]:
    return [req.kv.kv_allocated_len for req in reqs]


def test_with_room_for_the_step_nobody_is_compacted_early(engine):
    young, old = running(engine, 100, 5), running(engine, 300, 14)
    leave_free(engine, 2)
    engine.compact(young, old)
    assert lens(young, old) == [9, 18]


def test_before_the_step_fails_to_fit_the_largest_gives(engine):
    young, old = running(engine, 100, 12), running(engine, 300, 14)
    leave_free(engine, 1)
    engine.compact(young, old)
    assert lens(young, old) == [16, 13]
    assert engine.slots.available_size() == 1 + 5
    assert engine.governed(old).as_dict(0)["early_compactions"] == 1
    assert engine.governor.tally.totals.num_early == 1


def test_a_batch_s_positions_are_looked_up_again_after_its_compaction(engine):
    young, old = running(engine, 100, 12), running(engine, 300, 14)
    rows = torch.tensor([req.kv.req_pool_idx for req in (young, old)])
    assert engine.device.dropped_of(rows).tolist() == [0, 0]
    leave_free(engine, 1)
    engine.compact(young, old)
    assert engine.device.dropped_of(rows).tolist() == [0, 5]


def test_the_prefix_cache_gives_first(engine):
    engine.finish(engine.prefill(thoughts(600, 30)))
    old = running(engine, 300, 14)
    leave_free(engine, 0)
    engine.compact(old)
    assert lens(old) == [18]


def test_the_prefix_cache_gives_before_a_request_alone_is_ended(engine):
    engine.finish(engine.prefill(thoughts(600, 30)))
    alone = running(engine, 100, 9)
    leave_free(engine, 1)  # just enough for the step
    engine.compact(alone)
    assert alone.to_finish is None


def test_nobody_is_pulled_below_what_a_compaction_leaves(engine):
    requests = [running(engine, 100 * i, 9) for i in range(1, 4)]
    leave_free(engine, 0)
    engine.compact(*requests)
    assert lens(*requests) == [13, 13, 13]


def test_without_elastic_budgets_only_what_is_due_is_compacted(engine):
    engine.capacity.elastic = False
    old = running(engine, 300, 15)
    leave_free(engine, 1)
    engine.compact(old)
    assert lens(old) == [19]
    engine.decode(old, [900])
    assert lens(old) == [13]


def test_a_switched_off_request_gives_nothing(engine):
    off, old = running(engine, 100, 14, OFF), running(engine, 300, 14)
    leave_free(engine, 0)
    engine.compact(off, old)
    assert lens(off, old) == [18, 13]


def test_a_chunked_prompt_s_next_tokens_are_provided_for(engine):
    old = running(engine, 300, 14)
    leave_free(engine, 4)
    engine.scheduler.chunked_req = type(
        "Chunked", (), {"full_untruncated_fill_ids": range(9), "extend_end": 5}
    )
    engine.compact(old)
    assert lens(old) == [13]


def test_a_request_alone_in_a_full_pool_ends_by_its_length(engine):
    alone = running(engine, 100, 9)
    leave_free(engine, 2)
    engine.compact(alone)
    assert alone.to_finish is None
    leave_free(engine, 1)
    engine.compact(alone)
    assert isinstance(alone.to_finish, FINISH_LENGTH)
    assert alone.to_finish.length == 10


def test_a_switched_off_request_alone_is_sglang_s_to_end(engine):
    alone = running(engine, 100, 9, OFF)
    leave_free(engine, 1)
    engine.compact(alone)
    assert alone.to_finish is None


def test_an_answer_that_came_since_the_last_look_is_not_taken_for_thinking(engine):
    old = engine.prefill(thoughts(300, 4))
    for token in [*thoughts(304, 3), 2, *thoughts(310, 11)]:  # thinking, its closing marker, an answer
        engine.decode(old, [token])
    leave_free(engine, 0)
    engine.compact(old)
    assert lens(old) == [19]
    assert engine.window(old).tracker.answer_len == 12


def test_a_waiting_request_is_let_in_as_soon_as_there_is_room(engine):
    old = running(engine, 300, 14)
    leave_free(engine, 3)
    engine.capacity.wanted = 5
    batch = engine.compact(old)
    assert lens(old) == [13]
    assert (engine.capacity.wanted, batch.batch_is_full) == (0, False)


def waiting(engine: Engine, *reqs: Req) -> None:
    """A round while a request waits that admission refused."""
    engine.scheduler.waiting_queue.append("a request")
    batch = batch_of(*reqs)
    compact_requests(engine.scheduler, batch)
    compact_requests(engine.scheduler, batch)


def test_while_requests_wait_windows_are_pulled_back_at_half_their_period(engine):
    below, half = running(engine, 100, 11), running(engine, 300, 13)  # T is 13, the period 7
    waiting(engine, below, half)
    assert lens(below, half) == [15, 13]


def test_it_is_soon_seen_that_requests_wait(engine):
    half = running(engine, 300, 13)
    batch = engine.compact(half)  # nobody waits: calm until the window is at its budget
    assert lens(half) == [17]
    engine.scheduler.waiting_queue.append("a request")
    compact_requests(engine.scheduler, batch)
    assert lens(half) == [13]


@pytest.mark.parametrize("why", ["elastic is off", "no more may run", "admission has not refused it"])
def test_who_does_not_wait_for_room_changes_nothing(engine, why):
    half = running(engine, 300, 13)
    engine.scheduler.waiting_queue.append("a request")
    batch = batch_of(half)
    if why == "elastic is off":
        engine.capacity.elastic = False
    elif why == "no more may run":
        engine.scheduler.max_running_requests = 1
    else:
        batch.batch_is_full = False
    compact_requests(engine.scheduler, batch)
    assert lens(half) == [17]


def test_while_there_is_no_room_admission_is_not_asked_again(engine):
    old = running(engine, 300, 10)
    leave_free(engine, 3)
    engine.capacity.wanted = 50
    batch = engine.compact(old)
    assert (engine.capacity.wanted, batch.batch_is_full) == (50, True)


def test_a_due_request_that_must_wait_is_not_forgotten_for_an_earlier_batch_s_calm(engine):
    """It was resumed: its first forward is not processed yet, and the batch before had time."""
    other, resumed = running(engine, 100, 1), running(engine, 300, 15)
    engine.decode(other, [900])  # promises calm for more than two rounds
    resumed.kv.kv_allocated_len = resumed.kv.kv_committed_len = 20
    resumed.decode_batch_idx = 0
    batch = engine.compact(other, resumed)
    assert lens(resumed) == [20]
    resumed.decode_batch_idx = 1
    compact_requests(engine.scheduler, batch)
    assert lens(resumed) == [13]
