"""The prefix cache, which keeps compacted rows out of the tree."""

from dataclasses import replace

import torch
from sglang.srt.environ import envs
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.registry import create_unified_radix_cache
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from sglang_dynts.entry.governed_request import GovernedRequest
from sglang_dynts.scheduling.governor import Governed, Governor, governor_of
from sglang_dynts.scheduling.retraction import bring_back, build_fill_ids_anew


def build_radix_cache(context):
    """Build the cache for SGLang's registry; also used, disabled, under ``--disable-radix-cache``."""
    return create_unified_radix_cache(context, cache_class=DynTSRadixCache)


class DynTSRadixCache(Governed, UnifiedRadixCache):
    """A radix cache whose requests may be compacted.

    The tree pairs the n-th token of a request with the n-th slot of its row. A compaction breaks that
    pairing beyond the question, and frees slots there, so of a request that may be compacted the tree
    takes and gives the question alone, which is the prompt up to thinking that it continues:
    :meth:`checkpoint` clamps what goes in, :meth:`match_prefix` what the request gets.

    A compacted request that is retracted leaves a copy of its window on the host. When it is admitted
    again, :meth:`match_prefix` presents the copy as its prefix and :meth:`prefix_device_indices` brings
    it back, so that only the newest token is computed.
    """

    def checkpoint(self, req, *, up_to: int, **kwargs) -> None:
        """Insert a request's row into the tree up to what may be shared."""
        governed = self._governor.governed(req)
        limit = min(up_to, _shareable_len(req, governed))
        if self.supports_swa():
            limit = self._limit_in_sight(req, limit)
        if self.supports_mamba():
            limit = _limit_of_state(req, limit, governed.dropped)
        super().checkpoint(req, up_to=limit, **kwargs)
        if governed.num_resumptions:
            build_fill_ids_anew(req)

    def match_prefix(self, params):
        """Match a request no further than its question, so that its thinking tokens stay its own."""
        req = params.req
        if req is None or self._governor.window_of(req) is None:
            return super().match_prefix(params)
        governed = self._governor.governed(req)
        if governed.copy is not None:
            return self._match_copy(params, governed)
        return super().match_prefix(replace(params, key=_limited(params.key, governed.question_len)))

    def prefix_device_indices(self, req) -> torch.Tensor:
        """Slots of a request's prefix: [prefix_len] int64; a copy is written to new ones here."""
        copy = self._governor.governed(req).copy
        if copy is None:
            return super().prefix_device_indices(req)
        slots = self._governor.pools.take_for_copy(self, req, copy.num_tokens)
        bring_back(self._governor, req, slots)
        return slots

    def ready_to_load_host_cache(self) -> int:
        """Start loading prefixes from the host, after pending moves read the slots they come to."""
        self._governor.device.settle_moves()
        return super().ready_to_load_host_cache()

    def evict_sliding_windows(self, req, pre_len: int, *, eviction_interval: int = 1) -> None:
        """Slide a request's windows: SGLang counts tokens seen, its row has those that are held.

        SGLang compares the two to find out when it is time, so of a compacted request it thinks that it
        always is.
        """
        dropped = self._governor.governed(req).dropped
        if dropped:
            eviction_interval = max(eviction_interval, envs.SGLANG_SWA_EVICTION_INTERVAL.get())
        super().evict_sliding_windows(req, pre_len - dropped, eviction_interval=eviction_interval)

    def slide(self, req, held: int) -> None:
        """Slide a request's windows now, up to what a token behind ``held`` columns of its row sees."""
        super().evict_sliding_windows(req, held)

    def on_release(self, req, *, checkpointed: bool) -> None:
        """Close a request's window when its row is given back; without a copy it starts anew."""
        governed = self._governor.governed(req)
        governed.close(self._governor.held_len(req))
        if req.finished():
            self._governor.read_scores(req)
            self._learn_answer(req, governed)
        elif governed.copy is None:
            governed.restart()
        super().on_release(req, checkpointed=checkpointed)

    @property
    def _governor(self) -> Governor:
        assert self.governor is not None, "the cache is asked before the scheduler has started"
        return self.governor

    def _limit_in_sight(self, req, limit: int) -> int:
        """Where the window has slid past what was to be shared, share no more than is shared already.

        Nobody could go on from there: its sliding layers hold no K and V of the tokens before it. Where a
        draft reads the model, the tree's keys are pairs of tokens, one fewer than tokens.
        """
        window = self.swa_retain_window
        assert window is not None, "sliding layers have a window"
        slid = req.kv.get_evicted_seqlen(ComponentType.SWA)
        if slid <= max(0, limit - window):
            return limit
        return min(limit, req.kv.cache_protected_len + int(self.tree_core.is_eagle))

    def _learn_answer(self, req, governed: GovernedRequest) -> None:
        window = governed.window
        if window is not None and not isinstance(req.finished_reason, FINISH_ABORT):
            window.tracker.advance(self._governor.after_question(req)[window.tracker.num_seen :])
            self._governor.capacity.answers.observe(window.tracker.answer_len)

    def _match_copy(self, params, governed: GovernedRequest):
        req, copy = params.req, governed.copy
        assert copy is not None, "a request without a copy has nothing to be matched with"
        question, ids = governed.question_len, req.origin_input_ids + req.output_ids
        req.full_untruncated_fill_ids = ids[:question] + ids[question + governed.dropped :]
        nothing = super().match_prefix(replace(params, key=_limited(params.key, 0)))
        return nothing._replace(device_prefix_len=copy.num_tokens, cache_protected_len=0)


def _shareable_len(req, governed: GovernedRequest) -> int:
    whole = governed.window is None or (req.finished() and governed.dropped == 0)
    return len(req.full_untruncated_fill_ids) if whole else governed.question_len


def _limit_of_state(req, limit: int, dropped: int) -> int:
    """Where the kept recurrent state is of more tokens than may be shared, share nothing.

    Whoever went on from it would have seen tokens that are not his. Of a finished request SGLang looks
    for an earlier state itself; but of one that dropped tokens it names them by columns of the row.
    """
    if req.finished() and not dropped:
        return limit
    state_len = req.kv.mamba_last_track_seqlen
    return 0 if state_len is not None and state_len > limit else limit


def keep_state(original, processor, req, *args, **kwargs) -> None:
    """AROUND SchedulerBatchResultProcessor._mamba_prefix_cache_update: none of compacted requests.

    SGLang knows by the columns of the row when a state is to be kept, and a compaction takes some of them
    away while the forward that keeps it runs.
    """
    governor = governor_of(processor.tree_cache)
    if governor is None or not governor.governed(req).dropped:
        original(processor, req, *args, **kwargs)


def _limited(key: RadixKey, most: int) -> RadixKey:
    limit = most if key.limit is None else min(most, key.limit)
    return RadixKey(key.token_ids, key.extra_key, key.is_bigram, limit=limit, cache_salt=key.cache_salt)
