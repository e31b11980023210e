"""What compaction, admission and retraction of one scheduler share."""

from dataclasses import dataclass

import numpy as np
import torch

from sgl_dynts.capacity import AnswerReserve, room_beyond_retained
from sgl_dynts.window import Cut
from sglang_dynts.host_copies import HostCopies
from sglang_dynts.runtime import DynTSRuntime


@dataclass(frozen=True)
class Compaction:
    """One request's compaction: the cut, whether it was early, and [cut.window_len] slots before it."""

    cut: Cut
    early: bool
    slots: torch.Tensor


class CapacityState:
    """The books of a scheduler's pool.

    ``elastic`` tells whether compactions may run early. ``wanted`` counts the slots that the first
    waiting request needs besides the running ones' next step, 0 unless it was refused for lack of them
    alone; ``lost`` holds retracted requests that can be neither resumed nor computed again;
    ``rate`` is the pace of staggered compactions for ``rate_for`` running requests;
    ``compacted_now`` holds the requests that this iteration's round compacted, with their former slots.
    """

    def __init__(
        self,
        runtime: DynTSRuntime,
        pool_len: int,
        copies: HostCopies,
        answers: AnswerReserve,
        elastic: bool = True,
    ) -> None:
        self.runtime = runtime
        self.pool_len = pool_len
        self.copies = copies
        self.answers = answers
        self.elastic = elastic
        self.wanted = 0
        self.rate, self.rate_for = 1, 0
        self.lost: list = []
        self.compacted_now: dict[object, Compaction] = {}

    def fits_pool(self, seq_len: int) -> bool:
        """Whether a request of this length can be computed in an empty pool and make one more token."""
        return seq_len + 2 <= self.pool_len

    def reserved_len(self, retained, period, answered) -> np.ndarray:
        """Window length to reserve for requests over the rest of their lives.

        Args:
            retained: int or [n] int64, what a compaction leaves, answer tokens so far included.
            period: alike, tokens between two compactions.
            answered: alike, answer tokens so far.
        """
        answer = np.maximum(self.answers.tokens - answered, 0)
        return retained + room_beyond_retained(period, answer, self.elastic)
