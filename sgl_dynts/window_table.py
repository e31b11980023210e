"""The lengths of all running requests side by side, so that a scheduler step asks one question of all."""

from collections.abc import Sequence

import numpy as np

from sgl_dynts.due import NEVER, UNKNOWN
from sgl_dynts.window import RequestWindow


class WindowTable:
    """One line of host numbers per row of the request-to-token table; all [num_rows] int64, in tokens.

    ``end`` and the lengths that answers add are as of the last look at the request.
    """

    def __init__(self, num_rows: int) -> None:
        self.due = np.zeros(num_rows, dtype=np.int64)
        """Window length at which a compaction is due; NEVER for a request that has no window, UNKNOWN for
        one that nobody looked at yet."""
        self.retained = np.zeros(num_rows, dtype=np.int64)
        """Window length that a compaction leaves."""
        self.period = np.ones(num_rows, dtype=np.int64)
        self.answered = np.zeros(num_rows, dtype=np.int64)
        """Answer tokens among those held."""
        self.end = np.zeros(num_rows, dtype=np.int64)
        """Window length at which the request ends at the latest."""

    def forget(self, rows: Sequence[int]) -> None:
        """Make rows unknown: they are handed to new requests."""
        self.due[rows] = UNKNOWN

    def remaining(self, rows: np.ndarray, window_lens: np.ndarray) -> np.ndarray:
        """[n] int64, tokens until each request's compaction is due, as of the last look at it.

        Args:
            rows: [n] int64.
            window_lens: [n] int64, what each holds.
        """
        return self.due[rows] - window_lens

    def set(self, row: int, window: RequestWindow, max_seq_len: int) -> None:
        """Note a request's lengths.

        Args:
            row: its row.
            window: its window, None of its numbers older than its last look.
            max_seq_len: question and the most tokens it may generate.
        """
        self.due[row] = window.due_len
        self.retained[row] = window.retained_len
        self.period[row] = window.config.period
        self.answered[row] = window.tracker.answer_len
        self.end[row] = max_seq_len - window.dropped

    def set_without_window(self, row: int) -> None:
        """Note that a row's request is never compacted."""
        self.due[row] = self.retained[row] = NEVER
        self.period[row] = 1
        self.answered[row] = 0
