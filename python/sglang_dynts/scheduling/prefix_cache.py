"""The prefix cache that owns every request's windows and keeps compacted rows out of the tree."""

from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.mem_cache.allocation import alloc_token_slots
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.registry import create_unified_radix_cache
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from sgl_dynts.policies import Policy
from sgl_dynts.window import RequestWindow
from sglang_dynts.entry.governed_request import Numbers, RequestReport, Totals
from sglang_dynts.entry.host_copies import bytes_per_token, read_copy, write_copy
from sglang_dynts.entry.options import policy_of_request, wants_compactions, wants_tokens
from sglang_dynts.entry.token_log import TokenLog, read_new
from sglang_dynts.scheduling.capacity_state import CapacityState
from sglang_dynts.telling.metrics import Meter


def build_radix_cache(context):
    """Build the cache for SGLang's registry; also used, disabled, under ``--disable-radix-cache``."""
    return create_unified_radix_cache(context, cache_class=DynTSRadixCache)


class DynTSRadixCache(UnifiedRadixCache):
    """A radix cache whose requests may be compacted.

    The tree pairs the n-th token of a request with the n-th slot of its row. A compaction breaks that
    pairing beyond the prompt, so of a request that may be compacted the tree takes and gives the
    prompt alone: :meth:`checkpoint` clamps what goes in, :meth:`match_prefix` what a retracted
    request gets back.

    A compacted request that is retracted leaves a copy of its window on the host. When it is admitted
    again, :meth:`match_prefix` presents the copy as its prefix and :meth:`prefix_device_indices` brings
    it back, so that only the newest token is computed.
    """

    def __init__(self, params) -> None:
        """Build an ungoverned cache.

        ``meter`` hears what happens, ``facts`` are what the server tells of its configuration, and
        ``running_reqs`` returns the requests of the running batch.
        """
        super().__init__(params)
        self.totals = Totals()
        self.meter = Meter()
        self.facts: dict[str, Any] = {}
        self.running_reqs: Callable[[], list] = list
        self._reports: WeakKeyDictionary[object, RequestReport] = WeakKeyDictionary()
        self._new_window: Callable[[object], RequestWindow | None] | None = None
        self._capacity: CapacityState | None = None
        self.policies: dict[str, Policy] = {}
        """Who scores the tokens of a request, by name."""

    def govern(
        self,
        new_window: Callable[[object], RequestWindow | None],
        capacity: CapacityState,
        policies: dict[str, Policy],
    ) -> None:
        """Start owning windows; ``new_window(req)`` makes one, or None for a switched-off request."""
        self._new_window = new_window
        self._capacity = capacity
        self.policies = policies

    @property
    def capacity(self) -> CapacityState:
        """What compaction and admission of this scheduler share."""
        assert self._capacity is not None, "the cache is asked for its state before govern()"
        return self._capacity

    def report_of(self, req) -> RequestReport:
        """Return what is known of a request, its window included."""
        report = self._reports.get(req)
        if report is None:
            assert self._new_window is not None, "the cache is asked for windows before govern()"
            params = req.sampling_params
            report = RequestReport(
                self._new_window(req),
                len(req.origin_input_ids),
                policy=policy_of_request(params),
                detailed=wants_compactions(params),
                tokens=TokenLog() if wants_tokens(params) else None,
            )
            self._reports[req] = report
            self._count_request(req, report)
        return report

    def _count_request(self, req, report: RequestReport) -> None:
        if req.rid.startswith(HEALTH_CHECK_RID_PREFIX):  # a probe of SGLang's, nobody's request
            return
        seen = report.window is not None, report.has_long_question
        self.totals.add_request(*seen)
        self.meter.request_seen(*seen)

    def report_now(self, req) -> Numbers:
        """Return what a client is told of a request, read up to the newest token it was sent."""
        report = self.report_of(req)
        if not req.kv.holds_kv:
            return report.as_dict(0, req.finished())
        self._read_scores(req, report)
        return report.as_dict(req.kv.kv_allocated_len, req.finished())

    def _read_scores(self, req, report: RequestReport) -> None:
        """Bring a request's log up to the newest token whose forward is done, if it keeps one."""
        if report.tokens is None or req.beam_group is not None:
            return
        dropped = 0 if report.window is None else report.window.dropped
        seq_len = min(_seen_len(req) - 1, req.kv.kv_allocated_len + dropped)
        row = self.req_to_token_pool.req_to_token[req.kv.req_pool_idx]
        read_new(report.tokens, row, self.capacity.runtime.scores.scores, dropped, seq_len)

    def window_of(self, req) -> RequestWindow | None:
        """Return a request's window, None where DynTS is switched off for it."""
        return self.report_of(req).window

    def checkpoint(self, req, *, up_to: int, **kwargs) -> None:
        """Insert a request's row into the tree up to what may be shared."""
        super().checkpoint(req, up_to=min(up_to, self._shareable_len(req)), **kwargs)
        if self.report_of(req).num_resumptions:
            req.full_untruncated_fill_ids = array("q")  # those of a copy: to be built anew

    def match_prefix(self, params):
        """Match a request no further than its prompt, so that its thinking tokens stay its own."""
        req = params.req
        if req is None or self.window_of(req) is None:
            return super().match_prefix(params)
        if req in self.capacity.copies:
            return self._match_copy(params)
        return super().match_prefix(replace(params, key=_limited(params.key, len(req.origin_input_ids))))

    def prefix_device_indices(self, req) -> torch.Tensor:
        """Slots of a request's prefix: [prefix_len] int64; a copy is written to new ones here."""
        if req not in self.capacity.copies:
            return super().prefix_device_indices(req)
        copy = self.capacity.copies.take(req)
        slots = alloc_token_slots(self, copy.num_tokens)
        scores = self.capacity.runtime.scores.scores
        write_copy(self.token_to_kv_pool_allocator, copy, slots, scores)
        window = self.window_of(req)
        assert window is not None, "only governed requests are copied"
        self.capacity.runtime.resumed[req] = window.dropped
        self.report_of(req).num_resumptions += 1
        self.totals.num_resumptions += 1
        self.meter.resumed()
        return slots

    def observe_pool(self) -> None:
        """Tell the meter what the governed running requests hold and save; looks at each of them."""
        held = saved = 0
        for req in self.running_reqs():
            window = self.window_of(req) if req.kv.holds_kv else None
            if window is not None:
                held += req.kv.kv_allocated_len
                saved += window.dropped
        self.meter.observe_pool(held, saved, self.capacity.copies.num_bytes)

    def may_be_copied(self, req) -> bool:
        """Whether copies are kept at all, and the request can go on without a forward over its prompt."""
        needs_prompt = req.return_logprob and req.logprob_start_len >= 0
        return self.capacity.copies.max_bytes > 0 and not needs_prompt

    def copy_to_host(self, req) -> bool:
        """Copy the window of a request that is about to lose its row; whether a copy was kept.

        The forward in flight, if there is one, saw the window before this iteration's compaction, and its
        token is lost. So that the same token comes again, that compaction is undone in the copy; what it
        freed was not written since.
        """
        row = self.req_to_token_pool.req_to_token[req.kv.req_pool_idx]
        window = self.window_of(req)
        undone = self.capacity.compacted_now.pop(req, None)
        if undone is not None and window is not None and _is_in_flight(req, window):
            row = undone.slots
            self.report_of(req).undo(undone.cut.num_dropped, undone.early)
            self.totals.num_undone += 1
            self.meter.undone()
        return self._copy_row(req, window, row)

    def _copy_row(self, req, window: RequestWindow | None, row: torch.Tensor) -> bool:
        if window is None or not self.may_be_copied(req) or self._can_be_recomputed(req, window):
            return False
        allocator = self.token_to_kv_pool_allocator
        num_tokens = _held_len(req, window) - 1
        if not self._make_room(num_tokens * bytes_per_token(allocator)):
            return False
        scores = self.capacity.runtime.scores.scores
        self.capacity.copies.add(req, read_copy(allocator, row[:num_tokens], scores))
        return True

    def on_release(self, req, *, checkpointed: bool) -> None:
        """Close a request's window when its row is given back; without a copy it starts anew."""
        report = self.report_of(req)
        report.close(req.kv.kv_allocated_len)
        if req.finished():
            self._read_scores(req, report)
            self._learn_answer(req, report.window)
        elif req not in self.capacity.copies:
            report.restart()
        super().on_release(req, checkpointed=checkpointed)

    def _learn_answer(self, req, window: RequestWindow | None) -> None:
        if window is not None and not isinstance(req.finished_reason, FINISH_ABORT):
            window.tracker.advance(req.output_ids[window.tracker.num_seen :])
            self.capacity.answers.observe(window.tracker.answer_len)

    def _can_be_recomputed(self, req, window: RequestWindow) -> bool:
        """Whether computing the request again gives the window it had."""
        return window.dropped == 0 and self.capacity.fits_pool(_held_len(req, window))

    def _match_copy(self, params):
        req = params.req
        window = self.window_of(req)
        assert window is not None, "only governed requests are copied"
        req.full_untruncated_fill_ids = req.origin_input_ids + req.output_ids[window.dropped :]
        nothing = super().match_prefix(replace(params, key=_limited(params.key, 0)))
        return nothing._replace(device_prefix_len=self.capacity.copies.len_of(req), cache_protected_len=0)

    def _make_room(self, num_bytes: int) -> bool:
        """Whether a copy of this size fits, after giving up copies that can be computed again."""
        copies = self.capacity.copies
        for req in copies.requests():
            if copies.has_room_for(num_bytes):
                break
            if self.capacity.fits_pool(_seen_len(req)):
                self._give_up_copy(req)
        return copies.has_room_for(num_bytes)

    def _give_up_copy(self, req) -> None:
        self.capacity.copies.take(req)
        self.report_of(req).restart()
        req.full_untruncated_fill_ids = array("q")

    def _shareable_len(self, req) -> int:
        window = self.window_of(req)
        whole = window is None or (req.finished() and window.dropped == 0)
        return len(req.full_untruncated_fill_ids) if whole else len(req.origin_input_ids)


def _limited(key: RadixKey, most: int) -> RadixKey:
    limit = most if key.limit is None else min(most, key.limit)
    return RadixKey(key.token_ids, key.extra_key, key.is_bigram, limit=limit, cache_salt=key.cache_salt)


def _is_in_flight(req, window: RequestWindow) -> bool:
    """Whether a forward of the request's newest token was launched: that token has its slot already."""
    return _held_len(req, window) == req.kv.kv_allocated_len


def _held_len(req, window: RequestWindow) -> int:
    """Tokens a request needs KV of to go on, its newest included."""
    return _seen_len(req) - window.dropped


def _seen_len(req) -> int:
    """Tokens of a request, the newest one included, whose forward is not done."""
    return len(req.origin_input_ids) + len(req.output_ids)
