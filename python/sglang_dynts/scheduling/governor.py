"""DynTS's side of one scheduler: what is configured, what is counted, and every request's own object."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

from sgl_dynts.config import DynTSConfig
from sgl_dynts.policies import Policy
from sgl_dynts.thinking import ThinkingTracker, ThinkMarkers
from sgl_dynts.window import Cut, RequestWindow
from sgl_dynts.window_table import WindowTable
from sglang_dynts.boot.markers import markers_of_request
from sglang_dynts.entry.governed_request import GovernedRequest
from sglang_dynts.entry.host_copies import HostCopies
from sglang_dynts.entry.options import (
    config_of_request,
    policy_of_request,
    wants_compactions,
    wants_tokens,
)
from sglang_dynts.entry.tally import Tally
from sglang_dynts.entry.token_log import TokenLog, read_new
from sglang_dynts.forward.device_state import DeviceState
from sglang_dynts.forward.queries.known import KnownQueries
from sglang_dynts.scheduling.capacity_state import CapacityState
from sglang_dynts.scheduling.slots.pools import OnePool


@dataclass(frozen=True)
class Compaction:
    """One request's compaction: the cut, whether it was early, and [cut.window_len] slots before it."""

    cut: Cut
    early: bool
    slots: torch.Tensor


class DeviceWork:
    """Runs what a compaction does to tensors; a simulation hands in one that counts it otherwise."""

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do it and return what it returns."""
        return work(*args)


class Governor:
    """Owns all that DynTS knows on a scheduler's side; made once, when the scheduler starts.

    ``config`` are the windows of requests that name none. ``device`` is what forwards share with it,
    ``pools`` are SGLang's of the KV slots. ``table`` has a line of lengths for each running request.
    ``lost`` holds retracted requests that can be neither resumed nor computed again; ``compacted_now``
    the requests that this iteration's round compacted, and ``settled`` the result that it processed
    before SGLang would. ``running_reqs`` returns those of the running batch.
    """

    def __init__(
        self,
        config: DynTSConfig,
        markers: ThinkMarkers,
        policies: dict[str, Policy],
        device: DeviceState,
        pools: OnePool,
        capacity: CapacityState,
        copies: HostCopies,
    ) -> None:
        self.config = config
        self.markers = markers
        self.policies = policies
        self.device = device
        self.pools = pools
        self.capacity = capacity
        self.copies = copies
        self.table = WindowTable(len(device.table))
        device.hears_of_new_rows.append(self.table.forget)
        self.queries: KnownQueries | None = None
        """What the model will ask, where its server calibrates."""
        self.tally = Tally()
        self.device_work = DeviceWork()
        self.gets_prompts = False
        """Whether prompts come with their K and V, so that no request can be computed here again."""
        self.running_reqs: Callable[[], Sequence[Any]] = list
        self.lost: list[Any] = []
        self.compacted_now: dict[Any, Compaction] = {}
        self.settled: Any = None
        self._governed: WeakKeyDictionary[Any, GovernedRequest] = WeakKeyDictionary()

    def governed(self, req) -> GovernedRequest:
        """Return what is known of a request, its window included; made when it is first asked for."""
        known = self._governed.get(req)
        if known is None:
            known = self._governed[req] = self._meet(req)
        return known

    def window_of(self, req) -> RequestWindow | None:
        """Return a request's window, None where DynTS is switched off for it."""
        return self.governed(req).window

    def after_question(self, req) -> Sequence[int]:
        """The tokens after a request's question: what its prompt thought, and what it generated."""
        question_len = self.governed(req).question_len
        if question_len >= len(req.origin_input_ids):
            return req.output_ids
        return req.origin_input_ids[question_len:] + req.output_ids

    def fits_again(self, seq_len: int) -> bool:
        """Whether a request of this length could be computed again from its tokens."""
        return not self.gets_prompts and self.capacity.fits_pool(seq_len)

    def note_lengths(self, req) -> None:
        """Keep a running request's line of the table up to date."""
        window, row = self.governed(req).window, req.kv.req_pool_idx
        if window is None or req.beam_group is not None:
            self.table.set_without_window(row)
        else:
            max_seq_len = len(req.origin_input_ids) + req.sampling_params.max_new_tokens
            self.table.set(row, window, max_seq_len)

    def record(self, req, done: Compaction) -> None:
        """Take note of a compaction that was carried out."""
        governed, cut = self.governed(req), done.cut
        governed.compacted(
            governed.own_window.seq_len(cut.window_len), cut.window_len, cut.num_dropped, done.early
        )
        governed.own_window.record(cut)
        self.note_lengths(req)
        self.tally.compacted(cut.window_len, cut.num_dropped, done.early)
        self.compacted_now[req] = done

    def held_len(self, req) -> int:
        """Tokens that a request holds, less drafts that were accepted behind its last token."""
        return min(req.kv.kv_committed_len, seen_len(req) - self.governed(req).dropped)

    def read_scores(self, req) -> None:
        """Bring a request's log up to the newest token whose forward is done, if it keeps one."""
        governed = self.governed(req)
        if governed.tokens is None or req.beam_group is not None:
            return
        seq_len = min(seen_len(req) - 1, req.kv.kv_committed_len + governed.dropped)
        row = self.device.table[req.kv.req_pool_idx]
        read_new(governed.tokens, row, self.device.scores.scores, governed.dropped, seq_len)

    def observe_pool(self) -> None:
        """Tell the meter what the governed running requests hold and save; looks at each of them."""
        held = saved = 0
        for req in self.running_reqs():
            window = self.window_of(req) if req.kv.holds_kv else None
            if window is not None:
                held += req.kv.kv_committed_len
                saved += window.dropped
        self.tally.meter.observe_pool(held, saved, self.copies.num_bytes)

    def _meet(self, req) -> GovernedRequest:
        params = req.sampling_params
        window = self._new_window(req)
        governed = GovernedRequest(
            window,
            len(req.origin_input_ids) if window is None else window.question_len,
            policy=policy_of_request(params),
            detailed=wants_compactions(params),
            tokens=self._new_log(req) if wants_tokens(params) else None,
            req=ref(req),
        )
        self.device.question_lens[req] = governed.question_len
        if not req.rid.startswith(HEALTH_CHECK_RID_PREFIX):  # a probe of SGLang's, nobody's request
            self.tally.request_seen(governed.window is not None, governed.has_long_question)
        return governed

    def _new_log(self, req) -> TokenLog:
        """Return an empty log; a prompt that came with its K and V has no scores."""
        return TokenLog(len(req.origin_input_ids) if self.gets_prompts else 0)

    def _new_window(self, req) -> RequestWindow | None:
        """Return the window of a request of which nothing is computed, None where DynTS is off for it.

        Where prompts come from another server, nobody here has seen their hidden states: they stay whole.
        """
        config = config_of_request(req.sampling_params, self.config)
        if config is None:
            return None
        markers = markers_of_request(req.sampling_params, self.markers)
        prompt = req.origin_input_ids
        tracker = ThinkingTracker(markers, markers.starts_thinking(prompt))
        question_len = len(prompt) if self.gets_prompts else markers.question_len(prompt)
        return RequestWindow(config, question_len, tracker)


class Governed:
    """What SGLang carries a scheduler's governor on: its prefix cache, which every hook is given."""

    governor: Governor | None = None
    """None until the scheduler has started."""


def governor_of(tree_cache) -> Governor | None:
    """Return the governor of a scheduler by its prefix cache, None where DynTS is off."""
    return tree_cache.governor if isinstance(tree_cache, Governed) else None


def seen_len(req) -> int:
    """Tokens of a request, the newest one included, whose forward need not be done.

    Of one that has ended, drafts that were accepted behind its last token do not count.
    """
    return len(req.origin_input_ids) + len(req.output_ids_through_stop)
