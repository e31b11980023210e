"""Admission that knows the bound: a governed request never holds more than its window and its answer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sglang.srt.managers.schedule_policy import (
    CLIP_MAX_NEW_TOKENS,
    AddReqResult,
    PrefillAdder,
)

from sgl_dynts.due import NEVER
from sgl_dynts.window import RequestWindow
from sglang_dynts.scheduling.capacity_state import CapacityState
from sglang_dynts.scheduling.governor import Governor, governor_of
from sglang_dynts.scheduling.speculation import committed_lens


def choose_adder(adder_class, scheduler):
    """AFTER Scheduler.get_prefill_adder_class: ours where the cache is ours."""
    return adder_class if governor_of(scheduler.tree_cache) is None else DynTSPrefillAdder


def reserve_of(capacity: CapacityState, req, window: RequestWindow) -> int:
    """Slots to reserve for a request that does not run, over the rest of its life."""
    end = len(req.origin_input_ids) + req.sampling_params.max_new_tokens - window.dropped
    numbers = window.retained_len, window.config.period, window.tracker.answer_len
    return min(int(capacity.reserved_len(*numbers)), end) + capacity.step.spare_slots


def growth_of_batch(governor: Governor, batch, stock: Callable[[Any], int]) -> int:
    """Slots that running requests are still expected to take; less than 0 if they will give.

    Args:
        governor: of the scheduler.
        batch: the running one.
        stock: says it of a request without a window.
    """
    num = len(batch.reqs)  # beam members have rows but are no requests
    rows = batch.req_pool_indices_cpu.numpy()[:num]
    is_speculative = governor.capacity.step.is_speculative
    lens = committed_lens(batch) if is_speculative else batch.seq_lens_cpu.numpy()[:num]
    return growth_of(governor, batch.reqs, rows, lens, stock)


def growth_of(
    governor: Governor,
    reqs: Sequence[Any],
    rows: np.ndarray,
    lens: np.ndarray,
    stock: Callable[[Any], int],
) -> int:
    """Slots that requests which have their rows are still expected to take; of ``rows`` and ``lens`` one
    each, [n] int64: what it holds.
    """
    governed = governor.table.due[rows] != NEVER
    growth = _growth(governor, rows[governed], lens[governed]).sum()
    return int(growth) + sum(stock(reqs[index]) for index in np.flatnonzero(~governed))


def _growth(governor: Governor, rows: np.ndarray, window_lens: np.ndarray) -> np.ndarray:
    """[n] int64, slots that governed requests are expected to take beyond their windows."""
    table = governor.table
    lines = table.retained[rows], table.period[rows], table.answered[rows]
    return np.minimum(governor.capacity.reserved_len(*lines), table.end[rows]) - window_lens


class DynTSPrefillAdder(PrefillAdder):
    """Reserves what windows can be held to; requests without a window are counted as SGLang counts.

    A request whose window is above its reserve offers the difference to others, for a compaction can
    take it back. So what is free now is checked besides what is reserved.
    """

    def __init__(self, page_size, tree_cache, token_to_kv_pool_allocator, running_batch, *args, **kwargs):
        nobody: Any = None  # SGLang would count request by request
        super().__init__(page_size, tree_cache, token_to_kv_pool_allocator, nobody, *args, **kwargs)
        governor = governor_of(tree_cache)
        assert governor is not None, "a server without DynTS admits as SGLang does"
        self.governor, self.capacity = governor, governor.capacity
        self.capacity.wanted = 0
        self.running_batch = running_batch
        self.num_running = self.next_step = 0
        if running_batch is not None and running_batch.reqs:
            self.num_running = self.next_step = len(running_batch.reqs)
            if self.capacity.step.is_speculative:
                self.next_step = running_batch.new_tokens_required_next_decode()
            self.memory_budget.total_offset += self._growth_of_batch(running_batch)

    def add_one_req_ignore_eos(self, req):
        """Admit a request of fixed length while the prefix cache is off, as any other request."""
        admission = self._select_prefill_admission(
            req,
            total_tokens=self._stock_total(req),
            host_hit_length=0,
            swa_host_hit_length=0,
            truncation_align_size=None,
        )
        if isinstance(admission, AddReqResult):
            return admission
        if self._is_delayed():
            return AddReqResult.OTHER
        self._commit_prefill_admission(req, admission, 0)
        return self.budget_state()

    def _is_delayed(self) -> bool:
        """Whether SGLang's prefill delayer, where there is one, holds this pass back."""
        delayer: Any = self.prefill_delayer_single_pass
        return delayer is not None and not delayer.negotiate_should_allow_prefill(
            local_prefillable=True,
            running_batch=self.num_running,
            max_prefill_bs=self.max_prefill_bs,
            max_running_requests=self.max_running_requests,
            waiting_queue_len=self.waiting_queue_len,
        )

    def _select_prefill_admission(self, req, *, total_tokens, **kwargs):
        window = self.governor.window_of(req)
        fill_len = len(req.full_untruncated_fill_ids)
        cached = req.kv.cache_protected_len
        reserve = fill_len if window is None else self._reserve_of_new(req, window)
        if window is not None:
            total_tokens = reserve - cached + self.per_req_token_overhead
        admission = super()._select_prefill_admission(req, total_tokens=total_tokens, **kwargs)
        if isinstance(admission, AddReqResult):
            return admission
        needed = fill_len - cached + self.per_req_token_overhead + self.capacity.step.spare_slots
        if needed + self.next_step > self.cur_rem_tokens:
            self.capacity.wanted = needed
            return AddReqResult.NO_TOKEN
        if window is None or admission.is_chunked:
            return admission
        return replace(admission, max_new_tokens=reserve - fill_len)

    def _commit_prefill_admission(self, req, admission, mamba_gap_reserve) -> None:
        copy = self.governor.governed(req).copy
        copied = 0 if copy is None else copy.num_tokens
        super()._commit_prefill_admission(req, admission, mamba_gap_reserve)
        self.memory_budget.total_offset += copied
        self.memory_budget.current_offset += copied

    def _get_running_request_total_token_offset(self, req):
        table = self.governor.table
        row = req.kv.req_pool_idx
        if table.due[row] == NEVER:
            return super()._get_running_request_total_token_offset(req)
        lens = np.array([req.kv.kv_committed_len])
        return int(_growth(self.governor, np.array([row]), lens)[0])

    def _growth_of_batch(self, batch) -> int:
        """Slots that all running requests are still expected to take; less than 0 if they will give."""
        return growth_of_batch(self.governor, batch, super()._get_running_request_total_token_offset)

    def _reserve_of_new(self, req, window: RequestWindow) -> int:
        """Slots to reserve for a waiting request; no more than an empty pool has."""
        bound = reserve_of(self.capacity, req, window)
        most = self.capacity.pool_len - self.per_req_token_overhead - 1
        return min(max(bound, len(req.full_untruncated_fill_ids)), most)

    def _stock_total(self, req) -> int:
        """Slots that SGLang demands for a request without a window."""
        left = max(req.sampling_params.max_new_tokens - len(req.output_ids), 0)
        extend = len(req.full_untruncated_fill_ids) - req.prefix_len
        return extend + min(left, CLIP_MAX_NEW_TOKENS) + self.per_req_token_overhead
