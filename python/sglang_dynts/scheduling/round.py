"""The compaction round: once per scheduler iteration, all chosen requests together."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH
from sglang.srt.runtime_context import get_context, get_serving
from sglang.srt.utils.hf_transformers_utils import get_tokenizer

from sgl_dynts.capacity import (
    AnswerReserve,
    Demand,
    are_near_due,
    calm_rounds,
    choose_compactions,
    is_crowded,
    rounds_until_half,
    stagger_rate,
)
from sgl_dynts.compaction import CompactionPlan, apply_compaction, plan_compaction, to_device
from sgl_dynts.config import DynTSConfig
from sgl_dynts.policies import build_policies
from sgl_dynts.thinking import ThinkingTracker, ThinkMarkers
from sgl_dynts.window import Cut, RequestWindow
from sgl_dynts.window_table import NEVER, UNKNOWN, WindowTable
from sglang_dynts.boot.markers import resolve_markers, separator_ids
from sglang_dynts.entry.host_copies import HostCopies, bytes_per_token
from sglang_dynts.entry.options import config_of_request, server_config
from sglang_dynts.entry.token_log import note_compaction, read_window
from sglang_dynts.forward.device_state import is_enabled, runtime_of
from sglang_dynts.forward.predictor_runner import loaded_predictor
from sglang_dynts.names import BACKEND_NAME
from sglang_dynts.scheduling.capacity_state import CapacityState, Compaction
from sglang_dynts.scheduling.policy_scores import let_policies_score
from sglang_dynts.scheduling.prefix_cache import DynTSRadixCache
from sglang_dynts.scheduling.resume import abort_lost
from sglang_dynts.telling.health import describe_configuration
from sglang_dynts.telling.reporting import new_meter

logger = logging.getLogger(__name__)


def start(scheduler) -> None:
    """BEFORE Scheduler.init_output_streamer: tokenizer, pools and cache exist; govern from here on.

    Raises:
        ValueError: the think markers cannot be recognised.
        RuntimeError: another cache than ours was built.
    """
    if not is_enabled():
        return
    cache = scheduler.tree_cache
    if not isinstance(cache, DynTSRadixCache):
        raise RuntimeError(f"DynTS needs its own radix cache, SGLang built {type(cache).__name__}")
    tokenizer = scheduler.tokenizer or get_tokenizer(get_serving().tokenizer_path)
    markers = resolve_markers(tokenizer)
    config = server_config()
    policies = build_policies(separator_ids(tokenizer))
    cache.govern(_window_maker(config, markers), _new_capacity(scheduler, config), policies)
    cache.running_reqs = lambda: scheduler.running_batch.reqs
    predictor = loaded_predictor(scheduler.tp_worker.model_runner)
    cache.facts = describe_configuration(config, markers, predictor)
    cache.meter = new_meter(scheduler, predictor)
    logger.info(describe(config, markers))


def _new_capacity(scheduler, config: DynTSConfig) -> CapacityState:
    bag = get_context().config_bag(BACKEND_NAME)
    allocator = scheduler.token_to_kv_pool_allocator
    copies = HostCopies(int(bag.dynts_host_memory_gb * (1 << 30)))
    _check_copies(allocator, copies, config)
    runtime = runtime_of(scheduler.tp_worker.model_runner)
    assert runtime is not None, "a server with DynTS has its device state"
    answers = AnswerReserve(first_guess=config.period // 2)
    return CapacityState(runtime, allocator.size, copies, answers, not bag.dynts_disable_elastic)


def _check_copies(allocator, copies: HostCopies, config: DynTSConfig) -> None:
    """Refuse a bound that holds no window, and a KV pool whose tokens cannot be copied.

    Raises:
        ValueError: naming the flag.
    """
    if not copies.max_bytes:
        return
    needed = config.budget * bytes_per_token(allocator)
    if copies.max_bytes < needed:
        raise ValueError(
            f"--dynts-host-memory-gb {copies.max_bytes / (1 << 30):g} does not hold one window of "
            f"{config.budget} tokens: give {needed / (1 << 30):.3g} or more, or 0 to keep no copies"
        )
    if allocator.get_kvcache().use_hnd:
        raise ValueError(
            "SGLANG_USE_HND_KVCACHE keeps K and V by head, which cannot be copied by token: unset it, "
            "or give --dynts-host-memory-gb 0 to keep no copies of retracted requests"
        )


def describe(config: DynTSConfig, markers: ThinkMarkers) -> str:
    """Say in one line what the resolved windows mean."""
    return (
        f"DynTS is on: budget {config.budget}, local window {config.local_window}, keep ratio "
        f"{config.keep_ratio}. A request holds at most {config.budget} tokens of question and "
        f"thinking, {config.retained_len(0)} after a compaction, and compacts every {config.period} "
        f"tokens; a question longer than {config.keep_len - config.selection_floor} raises its own "
        f"budget. Thinking ends at token {list(markers.closing)}, opens at {list(markers.opening)}."
    )


@dataclass(frozen=True)
class Chosen:
    """A running request that is compacted in this round."""

    index: int
    cut: Cut
    early: bool


def compact_requests(scheduler, running_batch) -> None:
    """BEFORE Scheduler._should_defer_prefill: free tokens before admission and the decode check.

    At this point the last batch is merged and every forward's reads of the rows are fenced off; the
    newest column may still be in computation, which is why it always belongs to the local window.
    """
    cache = scheduler.tree_cache
    if not isinstance(cache, DynTSRadixCache):
        return
    capacity = cache.capacity
    capacity.compacted_now.clear()
    if capacity.lost:
        abort_lost(scheduler)
    if not running_batch.reqs:
        return
    demand = _demand(scheduler, cache, running_batch)
    calm = capacity.pass_calm_round(running_batch.req_pool_indices_cpu, demand.waiting)
    if calm and not demand.is_tight:
        _reopen_admission(capacity, running_batch, demand.free)
        return
    Round(scheduler, cache, running_batch).run(demand)


def _demand(scheduler, cache: DynTSRadixCache, batch) -> Demand:
    """What the next step takes, in slots; the prefix cache is only asked when it matters."""
    capacity, step = cache.capacity, len(batch.reqs)
    waiting = batch.batch_is_full and len(scheduler.waiting_queue) > 0
    waiting = waiting and capacity.elastic and step < scheduler.max_running_requests
    chunked = scheduler.chunked_req
    if chunked is not None:
        step += len(chunked.full_untruncated_fill_ids) - chunked.extend_end
    wanted = capacity.wanted
    free = scheduler.token_to_kv_pool_allocator.available_size()
    if free <= step + wanted:
        free += cache.evictable_size()
    return Demand(free, step, wanted, waiting)


def _reopen_admission(capacity: CapacityState, batch, free: int) -> None:
    """Let a waiting request try again once what it lacked is free."""
    if capacity.wanted and free >= len(batch.reqs) + capacity.wanted:
        capacity.wanted = 0
        batch.batch_is_full = False


class Round:
    """One look at all running requests: who is compacted now, due or early."""

    def __init__(self, scheduler, cache: DynTSRadixCache, batch) -> None:
        self.scheduler = scheduler
        self.cache = cache
        self.capacity = cache.capacity
        self.table = cache.capacity.runtime.windows
        self.batch = batch
        num = len(batch.reqs)  # beam members have rows but are no requests
        self.rows = batch.req_pool_indices_cpu.numpy()[:num]
        self.lens = batch.seq_lens_cpu.numpy()[:num]

    def run(self, demand: Demand) -> None:
        """Compact what must be, or find out for how many rounds nothing will have to be."""
        if not self.capacity.knows(self.batch.req_pool_indices_cpu):
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

    def _remaining(self) -> np.ndarray:
        """[n] int64, tokens until each request is due; 0 or below is due."""
        return self.table.due[self.rows] - self.lens

    def _outlook(self, remaining: np.ndarray, waiting: bool) -> tuple[int, bool]:
        """For how many more rounds nothing must be compacted, and whether something must be now."""
        if (remaining <= 0).any():
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
        with self.cache.meter.on_device():
            _compact(self.scheduler, self.batch, chosen)
        self.cache.meter.round_took(time.perf_counter() - began)
        self.lens = self.batch.seq_lens_cpu.numpy()[: len(self.rows)]
        return sum(one.cut.num_dropped for one in chosen)

    def _meet_batch(self) -> None:
        """Look at requests that joined the batch, and set the pace that their number asks for."""
        for index in np.flatnonzero(self.table.due[self.rows] == UNKNOWN):
            req = self.batch.reqs[index]
            window = self.cache.window_of(req)
            if window is None or req.beam_group is not None:
                self.table.set_without_window(self.rows[index])
            else:
                _note(self.table, req, window)
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
            looks = [self._look_closer(int(i), int(remaining[i]), int(give[i])) for i in named]
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
        return np.flatnonzero(remaining <= 0)

    def _look_closer(self, index: int, remaining: int, give: int) -> Chosen | None:
        """Return the compaction of one request, None where its newest tokens make it pointless."""
        req = self.batch.reqs[index]
        window = self.cache.window_of(req)
        if window is None or not _is_settled(req):
            return None
        window_len = int(self.lens[index])
        if remaining <= 0:
            cut = window.cut(window_len, req.output_ids)
        else:
            cut = window.early_cut(window_len, req.output_ids, least=-(-give // 2))
        _note(self.table, req, window)
        return None if cut is None else Chosen(index, cut, early=window_len < window.due_len)

    def _finish_what_cannot_grow(self, free: int) -> None:
        """End a request that alone fills the pool, by its length, as SGLang ends any at that size."""
        if len(self.batch.reqs) > 1 or self.scheduler.chunked_req is not None or free > 1:
            return
        req = self.batch.reqs[0]
        if self.table.due[self.rows[0]] != NEVER and req.to_finish is None:
            req.to_finish = FINISH_LENGTH(length=len(req.output_ids) + 1)


def _note(table: WindowTable, req, window: RequestWindow) -> None:
    """Keep a request's line of the table up to date."""
    max_seq_len = len(req.origin_input_ids) + req.sampling_params.max_new_tokens
    table.set(req.kv.req_pool_idx, window, max_seq_len)


def _is_settled(req) -> bool:
    """Whether the request decodes, its prefill's result is processed, and it owns one row."""
    return not req.finished() and req.kv.holds_kv and req.decode_batch_idx >= 1 and req.beam_group is None


def _compact(scheduler, batch, chosen: list[Chosen]) -> None:
    cache = scheduler.tree_cache
    runtime = cache.capacity.runtime
    rows = [batch.reqs[one.index].kv.req_pool_idx for one in chosen]
    plan = plan_compaction(rows, [one.cut for one in chosen])
    table = scheduler.req_to_token_pool.req_to_token
    before = slots_of(table, plan)
    reqs = [batch.reqs[one.index] for one in chosen]
    let_policies_score(cache, reqs, plan.cuts, before)
    _read_scores(cache, reqs, plan, before)
    freed = apply_compaction(plan, table, runtime.scores, runtime.dropped)
    runtime.note_drops(rows)
    _shorten(batch, chosen)
    for one, slots in zip(chosen, before, strict=True):
        _record(cache, batch.reqs[one.index], one, slots)
    scheduler.token_to_kv_pool_allocator.free(freed)


def _read_scores(cache: DynTSRadixCache, reqs: list, plan: CompactionPlan, before: torch.Tensor) -> None:
    """Let requests that asked for it know the scores they are judged by, before answers are marked."""
    scores = cache.capacity.runtime.scores.scores
    for index, report in enumerate(map(cache.report_of, reqs)):
        if report.tokens is not None and report.window is not None:
            slots = before[index, : plan.cuts[index].window_len]
            read_window(report.tokens, slots, scores, report.window.dropped)


def slots_of(table: torch.Tensor, plan: CompactionPlan) -> torch.Tensor:
    """[num_requests, width] the rows of a plan as they are before it."""
    width = max(cut.window_len for cut in plan.cuts)
    return table[:, :width].index_select(0, to_device(torch.tensor(plan.rows), table.device))


def _record(cache: DynTSRadixCache, req, one: Chosen, slots: torch.Tensor) -> None:
    cut = one.cut
    assert req.kv.cache_protected_len <= cut.first, f"{req.kv.cache_protected_len=} {cut.first=}"
    assert req.kv.kv_allocated_len == cut.window_len, f"{req.kv.kv_allocated_len=} {cut=}"
    req.kv.kv_allocated_len -= cut.num_dropped
    req.kv.kv_committed_len -= cut.num_dropped
    report = cache.report_of(req)
    assert report.window is not None, "only governed requests are compacted"
    seq_len = report.window.seq_len(cut.window_len)
    if report.tokens is not None:
        row = cache.req_to_token_pool.req_to_token[req.kv.req_pool_idx, : req.kv.kv_allocated_len]
        note_compaction(report.tokens, slots[: cut.window_len], row, report.window.dropped, seq_len)
    report.compacted(seq_len, cut.window_len, cut.num_dropped, one.early)
    report.window.record(cut)
    _note(cache.capacity.runtime.windows, req, report.window)
    cache.totals.add(cut.num_dropped, one.early)
    cache.meter.compacted(cut.window_len, cut.num_dropped, one.early)
    cache.capacity.compacted_now[req] = Compaction(cut, one.early, slots[: cut.window_len])


def _shorten(batch, chosen: list[Chosen]) -> None:
    """Shorten the batch's lengths in new tensors: a forward in flight still reads the old ones."""
    delta = torch.zeros_like(batch.seq_lens_cpu)
    dropped = delta.numpy()
    for one in chosen:
        dropped[one.index] = one.cut.num_dropped
    batch.seq_lens_cpu = batch.seq_lens_cpu - delta
    batch.seq_lens = batch.seq_lens - to_device(delta.to(batch.seq_lens.dtype), batch.seq_lens.device)
    batch.seq_lens_sum = None


def _window_maker(
    default: DynTSConfig, markers: ThinkMarkers
) -> Callable[[object], RequestWindow | None]:
    def new_window(req) -> RequestWindow | None:
        config = config_of_request(req.sampling_params, default)
        if config is None:
            return None
        prompt = req.origin_input_ids
        tracker = ThinkingTracker(markers, markers.starts_thinking(prompt))
        return RequestWindow(config, len(prompt), tracker)

    return new_window
