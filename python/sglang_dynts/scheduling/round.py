"""The compaction round: once per scheduler iteration, which running requests are compacted, and why."""

import time

import numpy as np
from sglang.srt.managers.schedule_batch import FINISH_LENGTH

from sgl_dynts.capacity import (
    Demand,
    are_near_due,
    calm_rounds,
    choose_compactions,
    is_crowded,
    rounds_until_half,
    stagger_rate,
)
from sgl_dynts.due import NEVER, UNKNOWN, is_due
from sglang_dynts.scheduling.apply import Chosen, compact
from sglang_dynts.scheduling.capacity_state import CapacityState
from sglang_dynts.scheduling.governor import Governor, governor_of
from sglang_dynts.scheduling.resume import abort_lost
from sglang_dynts.scheduling.speculation import committed_lens, settle, tokens_in_flight


def compact_requests(scheduler, running_batch) -> None:
    """BEFORE Scheduler._should_defer_prefill: free tokens before admission and the decode check.

    At this point the last batch is merged and every forward's reads of the rows are fenced off; the
    newest column may still be in computation, which is why it always belongs to the local window.
    """
    waits = running_batch.batch_is_full and len(scheduler.waiting_queue) > 0
    hold_round(scheduler, running_batch, waits=waits)


def hold_round(scheduler, running_batch, *, waits: bool, num_joining: int = 0) -> None:
    """Compact whom this iteration asks for.

    Args:
        scheduler: SGLang's.
        running_batch: its running batch.
        waits: whether a request waits for slots.
        num_joining: requests that join the batch for its next step.
    """
    governor = governor_of(scheduler.tree_cache)
    if governor is None:
        return
    capacity = governor.capacity
    governor.compacted_now.clear()
    if governor.lost:
        abort_lost(scheduler, governor.lost)
    if not running_batch.reqs:
        return
    waits = waits and capacity.elastic and len(running_batch.reqs) < scheduler.max_running_requests
    demand = _demand(scheduler, governor, running_batch, waits, num_joining)
    calm = capacity.pass_calm_round(running_batch.req_pool_indices_cpu, demand.waiting)
    if calm and not demand.is_tight:
        _reopen_admission(capacity, running_batch, demand.free)
        return
    look = Round(scheduler, governor, running_batch)
    if look.in_flight and look.may_compact(demand):
        settle(scheduler, governor, running_batch)
        if not running_batch.reqs:
            return
        demand = _demand(scheduler, governor, running_batch, waits, num_joining)
        look = Round(scheduler, governor, running_batch, in_flight=0)
    look.run(demand)


def _demand(scheduler, governor: Governor, batch, waits: bool, num_joining: int) -> Demand:
    """What the next step takes, in slots; the prefix cache is only asked when it matters."""
    capacity, pools = governor.capacity, governor.pools
    step = step_len(capacity, batch) + num_joining * capacity.step.most_slots
    chunked = scheduler.chunked_req
    if chunked is not None:
        step += len(chunked.full_untruncated_fill_ids) - chunked.extend_end
    pools.make_room(scheduler.tree_cache, batch.reqs, step)
    wanted = capacity.wanted
    free = pools.num_free()
    if free <= step + wanted:
        free += pools.num_evictable(scheduler.tree_cache)
    return Demand(free, step, wanted, waits)


def step_len(capacity: CapacityState, batch) -> int:
    """Slots that the next decode step of the running requests takes."""
    if capacity.step.is_speculative:
        return batch.new_tokens_required_next_decode()
    return len(batch.reqs)


def _reopen_admission(capacity: CapacityState, batch, free: int) -> None:
    """Let a waiting request try again once what it lacked is free."""
    if capacity.wanted and free >= step_len(capacity, batch) + capacity.wanted:
        capacity.wanted = 0
        batch.batch_is_full = False


class Round:
    """One look at all running requests: who is compacted now, due or early.

    ``in_flight`` counts the tokens by which their windows may be longer than the host knows; a round
    that compacts has none.
    """

    def __init__(self, scheduler, governor: Governor, batch, in_flight: int | None = None) -> None:
        self.scheduler = scheduler
        self.governor = governor
        self.capacity = governor.capacity
        self.table = governor.table
        self.batch = batch
        num = len(batch.reqs)  # beam members have rows but are no requests
        self.rows = batch.req_pool_indices_cpu.numpy()[:num]
        self.in_flight = tokens_in_flight(scheduler, governor) if in_flight is None else in_flight
        self.lens = self._window_lens() + self.in_flight

    def may_compact(self, demand: Demand) -> bool:
        """Whether something may have to be compacted now, if windows are as long as they may be."""
        self._meet_batch()
        _, presses = self._outlook(self._remaining(), demand.waiting)
        return demand.is_tight or presses

    def run(self, demand: Demand) -> None:
        """Compact what must be, or find out for how many rounds nothing will have to be."""
        self._meet_batch()
        remaining = self._remaining()
        calm, presses = self._outlook(remaining, demand.waiting)
        freed = 0
        if demand.is_tight or presses:
            freed = self._compact_some(remaining, demand)
        if freed:
            calm, _ = self._outlook(self._remaining(), demand.waiting)
        self.capacity.expect_calm(calm, demand.waiting)
        _reopen_admission(self.capacity, self.batch, demand.free + freed)
        if demand.is_tight:
            self._finish_what_cannot_grow(demand.free + freed)

    def _window_lens(self) -> np.ndarray:
        """[n] int64, what each request holds as far as the host knows."""
        if self.capacity.step.is_speculative:
            return committed_lens(self.batch)
        return self.batch.seq_lens_cpu.numpy()[: len(self.rows)]

    def _remaining(self) -> np.ndarray:
        """[n] int64, tokens until each request is to be compacted."""
        return self.table.remaining(self.rows, self.lens) - self._ahead()

    def _ahead(self) -> np.ndarray:
        """[n] int64, by how many tokens each may be compacted before it is due.

        As many as the next step may add beyond its first: no verification then has to stop where a
        request is due. At most half a period, so that a compaction gives something.
        """
        reach = self.capacity.step.num_tokens - 1 if self.capacity.elastic else 0
        return np.minimum(reach, self.table.period[self.rows] // 2)

    def _outlook(self, remaining: np.ndarray, waiting: bool) -> tuple[int, bool]:
        """For how many more rounds nothing must be compacted, and whether something must be now."""
        if is_due(remaining).any():
            return -1, True
        calm = calm_rounds(remaining, self.capacity.rate)
        presses = calm < 0 and self._is_crowded(remaining)
        if waiting:
            half = rounds_until_half(self._give(), self.table.period[self.rows])
            calm, presses = min(calm, half), presses or half < 0
        return calm, presses

    def _compact_some(self, remaining: np.ndarray, demand: Demand) -> int:
        """Compact whom the policy names; the tokens that this frees."""
        began = time.perf_counter()
        chosen = self._choose(remaining, demand)
        if not chosen:
            return 0
        meter = self.governor.tally.meter
        with meter.on_device():
            compact(self.governor, self.scheduler, self.batch, chosen)
        meter.round_took(time.perf_counter() - began)
        self.lens = self._window_lens()
        return sum(one.cut.num_dropped for one in chosen)

    def _meet_batch(self) -> None:
        """Look at requests that joined the batch, and set the pace that their number asks for."""
        if self.capacity.knows(self.batch.req_pool_indices_cpu):
            return
        for index in np.flatnonzero(self.table.due[self.rows] == UNKNOWN):
            self.governor.note_lengths(self.batch.reqs[index])
        elastic = self.capacity.elastic
        rate = stagger_rate(self.table.period[self.rows]) if elastic else len(self.rows)
        self.capacity.meet(self.batch.req_pool_indices_cpu, rate)

    def _give(self) -> np.ndarray:
        """[n] int64, tokens that a compaction of each request frees, as of the last look at it."""
        return self.lens - self.table.retained[self.rows]

    def _is_crowded(self, remaining: np.ndarray) -> bool:
        """Whether those that will soon be due are too many to wait for it."""
        if not self.capacity.elastic:
            return False
        near = are_near_due(remaining, self.table.period[self.rows])
        return is_crowded(remaining[near], self.capacity.rate)

    def _choose(self, remaining: np.ndarray, demand: Demand) -> list[Chosen]:
        """Ask the policy, look closer at whom it names, and ask again while the step does not fit."""
        give = self._give()
        period = self.table.period[self.rows]
        chosen: list[Chosen] = []
        short = True
        while short:
            named = self._named(give, remaining, period, demand)
            looks = [self._look_closer(int(i), int(give[i])) for i in named]
            found = [one for one in looks if one is not None]
            chosen += found
            give[named], remaining[named] = 0, NEVER
            freed = sum(one.cut.num_dropped for one in found)
            demand = Demand(demand.free + freed, demand.step)
            short = demand.free < demand.step and len(named) > 0
        return chosen

    def _named(self, give, remaining, period, demand: Demand) -> np.ndarray:
        if self.capacity.elastic:
            return choose_compactions(give, remaining, period, demand, self.capacity.rate)
        return np.flatnonzero(is_due(remaining))

    def _look_closer(self, index: int, give: int) -> Chosen | None:
        """Return the compaction of one request, None where its newest tokens make it pointless."""
        req = self.batch.reqs[index]
        window = self.governor.window_of(req)
        if window is None or not _is_settled(req):
            return None
        window_len, after_question = int(self.lens[index]), self.governor.after_question(req)
        if is_due(int(self.table.due[self.rows[index]]) - window_len):
            cut = window.cut(window_len, after_question)
        else:
            cut = window.early_cut(window_len, after_question, least=-(-give // 2))
        self.governor.note_lengths(req)
        early = not is_due(window.remaining(window_len))
        return None if cut is None else Chosen(index, cut, early)

    def _finish_what_cannot_grow(self, free: int) -> None:
        """End a request that alone fills the pool, by its length, as SGLang ends any at that size."""
        if len(self.batch.reqs) > 1 or self.scheduler.chunked_req is not None:
            return
        if free > step_len(self.capacity, self.batch):
            return
        req = self.batch.reqs[0]
        if self.table.due[self.rows[0]] != NEVER and req.to_finish is None:
            req.to_finish = FINISH_LENGTH(length=len(req.output_ids) + 1)


def _is_settled(req) -> bool:
    """Whether the request decodes, its prefill's result is processed, and it owns one row."""
    return not req.finished() and req.kv.holds_kv and req.decode_batch_idx >= 1 and req.beam_group is None
