"""Who may come in on a decode server: SGLang reserves so many tokens, we what windows may take."""

from typing import Any

import numpy as np
from sglang.srt.disaggregation.decode import DecodePreallocQueue

from sglang_dynts.scheduling.admission import growth_of, growth_of_batch, reserve_of
from sglang_dynts.scheduling.governor import Governor, governor_of
from sglang_dynts.scheduling.round import step_len


class DynTSPreallocQueue(DecodePreallocQueue):
    """REPLACE scheduler.DecodePreallocQueue: requests that wait for slots.

    Another server will send their K and V, or they were retracted. One is let in when its own reserve,
    and what the others are still expected to take, are there, and its slots are free at once. Requests
    without a window are counted as SGLang counts.
    """

    _taken: list[Any]
    """Requests that got slots in this pass; no queue has them yet."""

    def somebody_waits(self) -> bool:
        """Whether a request has everything but slots."""
        return bool(self.retracted_queue) or any(one.waiting_for_input for one in self.queue)

    def coming(self) -> list[Any]:
        """Return requests that have slots and do not run yet."""
        known = [one.req for one in self.transfer_queue.queue] + self.scheduler.waiting_queue
        known += [req for req in self._taken if req not in known]
        return [req for req in known if req.kv.holds_kv]

    def pop_preallocated(self, *args: Any, **kwargs: Any):
        """Give slots to as many new requests as fit."""
        self._taken = []
        governor = governor_of(self.tree_cache)
        if governor is not None:
            governor.capacity.wanted = 0
        return super().pop_preallocated(*args, **kwargs)

    def resume_retracted_reqs(self, *args: Any, **kwargs: Any):
        """Give slots to as many retracted requests as fit."""
        self._taken = []
        return super().resume_retracted_reqs(*args, **kwargs)

    def _pre_alloc_fill_len(self, req) -> int:  # pyright: ignore  static there, and called on an instance
        """Slots that a request gets: a window that comes back has dropped some of its tokens."""
        governor = governor_of(self.tree_cache)
        dropped = 0 if governor is None else governor.governed(req).dropped
        return super()._pre_alloc_fill_len(req) - dropped

    def _pre_alloc(self, req, *args: Any, **kwargs: Any):
        """Give a request its slots; another server writes them as soon as it hears of them."""
        governor = governor_of(self.tree_cache)
        if governor is None:
            return super()._pre_alloc(req, *args, **kwargs)
        governor.device.finish_moves()
        slots = super()._pre_alloc(req, *args, **kwargs)
        governor.note_lengths(req)
        self._taken.append(req)
        return slots

    def _prealloc_required_tokens(self, req) -> tuple[int, int]:
        """Slots to ask for, in the one pool, and in a second one that is not served."""
        governor = governor_of(self.tree_cache)
        window = None if governor is None else governor.window_of(req)
        if governor is None or window is None:
            return super()._prealloc_required_tokens(req)
        capacity = governor.capacity
        least = self._pre_alloc_fill_len(req) + capacity.step.most_slots
        asked = min(max(reserve_of(capacity, req, window), least), capacity.pool_len - 1)
        return asked, asked

    def _required_admission_tokens(self, req, allocated_tokens, prefix_len, retractable_tokens) -> int:
        """Slots to ask for, for a new request; more than there are while its own are not free."""
        governor = governor_of(self.tree_cache)
        if governor is None:
            return super()._required_admission_tokens(
                req, allocated_tokens, prefix_len, retractable_tokens
            )
        capacity = governor.capacity
        needed = allocated_tokens + capacity.step.spare_slots
        if needed + self._next_step(governor) > governor.pools.num_free():
            capacity.wanted = capacity.wanted or needed
            return 2 * capacity.pool_len
        if governor.window_of(req) is not None:
            return self._prealloc_required_tokens(req)[0]
        return super()._required_admission_tokens(req, allocated_tokens, prefix_len, self._held())

    def _allocatable_token_budgets(  # pyright: ignore  the rest is passed on by name
        self, retractable_tokens: int | None = None, count_retracted: bool = True, **kwargs: Any
    ) -> int:
        """Slots that may be asked for: free ones, less what others are still expected to take.

        A window above its reserve offers the difference, for a compaction can take it back. A retracted
        one is written back at once, so for these no more is offered than is free.
        """
        governor = governor_of(self.tree_cache)
        if governor is None:
            return super()._allocatable_token_budgets(retractable_tokens, count_retracted, **kwargs)
        if not self.queue and not self.retracted_queue:
            return 0  # nobody asks
        free = governor.pools.num_free()
        budget = free - max([self._growth(governor), *self._needs_alone(governor)])
        if not count_retracted:
            return min(budget, free - self._next_step(governor))
        return budget - sum(self._prealloc_required_tokens(req)[0] for req in self.retracted_queue)

    def _growth(self, governor: Governor) -> int:
        """Slots that those who have some are still expected to take."""
        batch, coming = self.scheduler.running_batch, self.coming()
        rows = np.array([req.kv.req_pool_idx for req in coming], dtype=np.int64)
        lens = np.array([req.kv.kv_committed_len for req in coming], dtype=np.int64)
        growth = growth_of(governor, coming, rows, lens, self._stock_growth)
        return growth + (growth_of_batch(governor, batch, self._stock_growth) if batch.reqs else 0)

    def _stock_growth(self, _req) -> int:
        return self.num_reserved_decode_tokens

    def _next_step(self, governor: Governor) -> int:
        """Slots that the next decode step takes."""
        batch, capacity = self.scheduler.running_batch, governor.capacity
        running = step_len(capacity, batch) if batch.reqs else 0
        return running + len(self.coming()) * capacity.step.most_slots

    def _held(self) -> int:
        """Slots that retracting all running requests would free."""
        batch = self.scheduler.running_batch
        return int(batch.seq_lens_cpu.sum()) if batch.reqs else 0

    def _needs_alone(self, governor: Governor) -> list[int]:
        """Slots that requests without a window may still need, each when all others are retracted."""
        held = self._held()
        return [
            len(req.origin_input_ids) + (req.sampling_params.max_new_tokens or 0) - held
            for req in self.scheduler.running_batch.reqs
            if governor.window_of(req) is None
        ]
