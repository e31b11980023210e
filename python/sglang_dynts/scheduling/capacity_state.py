"""How full a scheduler's pool is and may get: what compaction, admission and retraction share."""

from dataclasses import dataclass

import numpy as np
import torch

from sgl_dynts.capacity import AnswerReserve, room_beyond_retained


@dataclass(frozen=True)
class DecodeStep:
    """What one decode step does to a request: most tokens it adds, slots held ready beyond its window.

    Without speculation it is one token, and its slot is taken when it is computed.
    """

    num_tokens: int = 1
    spare_slots: int = 0

    @property
    def is_speculative(self) -> bool:
        """Whether a step verifies drafts, so that the host learns afterwards how many tokens it added."""
        return self.spare_slots > 0

    @property
    def most_slots(self) -> int:
        """Most slots that the next step takes of a request that has not made one."""
        return max(1, self.spare_slots)


ONE_TOKEN = DecodeStep()


class CapacityState:
    """The books of a scheduler's pool.

    ``elastic`` tells whether compactions may run early, ``step`` what a decode step takes. ``wanted``
    counts the slots that the first waiting request needs besides the running ones' next step, 0 unless it
    was refused for lack of them alone; ``rate`` is the pace of staggered compactions, per iteration, of
    the batch that was met last.
    """

    def __init__(
        self, pool_len: int, answers: AnswerReserve, elastic: bool = True, step: DecodeStep = ONE_TOKEN
    ) -> None:
        self.pool_len = pool_len
        self.answers = answers
        self.elastic = elastic
        self.step = step
        self.wanted = 0
        self.rate = 1
        self._calm_rounds = 0
        self._promised_waiting = False
        self._met: torch.Tensor | None = None

    def knows(self, batch_rows: torch.Tensor) -> bool:
        """Whether these are the rows of the batch that was met last.

        SGLang binds a batch's tensor of rows anew whenever a request joins or leaves it.
        """
        return self._met is batch_rows

    def meet(self, batch_rows: torch.Tensor, rate: int) -> None:
        """Take note of a batch and its pace."""
        self._met = batch_rows
        self.rate = rate

    def expect_calm(self, num_rounds: int, waiting: bool) -> None:
        """Take note that the batch needs no look for so many rounds, if the pool does not ask for one.

        It replaces what an earlier batch was promised; less than 0 promises nothing. ``waiting`` tells
        whether requests wait, for which compactions run sooner. The promise is for steps of one token.
        """
        self._calm_rounds = num_rounds // self.step.num_tokens
        self._promised_waiting = waiting

    def pass_calm_round(self, batch_rows: torch.Tensor, waiting: bool) -> bool:
        """Count a round; whether nothing can have become due in it."""
        self._calm_rounds -= 1
        holds = self._promised_waiting or not waiting
        return holds and self._calm_rounds >= 0 and self.knows(batch_rows)

    def fits_pool(self, seq_len: int) -> bool:
        """Whether a request of this length can be computed in an empty pool and make one more token."""
        return seq_len + 2 + self.step.spare_slots <= self.pool_len

    def reserved_len(self, retained, period, answered) -> np.ndarray:
        """Window length to reserve for requests over the rest of their lives.

        Args:
            retained: int or [n] int64, what a compaction leaves, answer tokens so far included.
            period: alike, tokens between two compactions.
            answered: alike, answer tokens so far.
        """
        answer = np.maximum(self.answers.tokens - answered, 0)
        return retained + room_beyond_retained(period, answer, self.elastic)
