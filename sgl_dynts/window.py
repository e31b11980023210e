"""The lengths of one request and when a compaction is due; no tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sgl_dynts.config import DynTSConfig
from sgl_dynts.due import is_due
from sgl_dynts.thinking import ThinkingTracker


@dataclass(frozen=True)
class Cut:
    """One request's compaction, in window positions.

    ``[0, first)`` is the question; of the ``num_candidates`` positions after it the ``num_kept``
    best-scored survive; the ``local_window`` positions after those survive all. ``answer_spans`` are
    window positions, candidates or not, that must be scored infinite first: answer tokens that came
    since the last compaction. The oldest ``num_survivors`` candidates survived the last compaction; what
    comes after them is consecutive in the sequence.
    """

    first: int
    num_candidates: int
    num_kept: int
    local_window: int
    answer_spans: tuple[tuple[int, int], ...] = ()
    num_survivors: int = 0

    @property
    def num_dropped(self) -> int:
        """Slots the compaction frees."""
        return self.num_candidates - self.num_kept

    @property
    def window_len(self) -> int:
        """Window length before the compaction."""
        return self.first + self.num_candidates + self.local_window


@dataclass
class RequestWindow:
    """The window of one running request: question, selection and local window in one dense row.

    The caller owns ``window_len`` (it is the engine's sequence length) and passes it in; this object
    holds the rest. Invariant: ``seq_len = window_len + dropped``.
    """

    config: DynTSConfig
    question_len: int
    tracker: ThinkingTracker
    dropped: int = 0
    _marked: int = field(default=0, repr=False)
    """Tokens after the question whose answer parts are scored infinite."""
    _survivors: int = field(default=0, repr=False)
    """Tokens between question and local window that the last compaction left."""
    _before: tuple[int, int, int] = field(default=(0, 0, 0), repr=False)
    """``dropped``, ``_marked`` and ``_survivors`` before the last compaction."""

    @cached_property
    def budget(self) -> int:
        """B of this request, question and thinking tokens."""
        return self.config.budget_for(self.question_len)

    @property
    def due_len(self) -> int:
        """Window length below which no compaction can be due; rises with known answer tokens."""
        return self.budget + self.tracker.answer_len

    @property
    def retained_len(self) -> int:
        """Window length that a compaction leaves, give or take answer tokens not known yet."""
        return self.budget - self.config.period + self.tracker.answer_len

    def remaining(self, window_len: int) -> int:
        """Tokens until a compaction is due, as far as answers are known; see :func:`is_due`."""
        return self.due_len - window_len

    def seq_len(self, window_len: int) -> int:
        """Tokens the request has seen: the position of its next token."""
        return window_len + self.dropped

    def cut(self, window_len: int, tokens: Sequence[int]) -> Cut | None:
        """Return the compaction that is due now, or None.

        Args:
            window_len: tokens whose KV the request holds, the one being computed included.
            tokens: all after the question so far; may run ahead of the window.
        """
        if not is_due(self.remaining(window_len)):
            return None
        self._look_at(window_len, tokens)
        return self._cut_now(window_len) if is_due(self.remaining(window_len)) else None

    def early_cut(self, window_len: int, tokens: Sequence[int], least: int) -> Cut | None:
        """Return the compaction that would drop at least ``least`` tokens now, or None.

        It keeps as many tokens as one that is due, so it drops fewer. Arguments as in :meth:`cut`.
        """
        assert least >= 1, f"{least=}: a compaction drops something"
        self._look_at(window_len, tokens)
        if window_len - self.config.local_window - self.question_len <= 0:
            return None
        cut = self._cut_now(window_len)
        return cut if cut.num_dropped >= least else None

    def _look_at(self, window_len: int, tokens: Sequence[int]) -> None:
        """Learn the kind of every token that the window has seen."""
        num_held_once = self.seq_len(window_len) - self.question_len
        self.tracker.advance(tokens[self.tracker.num_seen : num_held_once])

    def _cut_now(self, window_len: int) -> Cut:
        local = self.config.local_window
        candidates = window_len - local - self.question_len
        answers = self._answers_before(self.seq_len(window_len) - local - self.question_len)
        return Cut(
            first=self.question_len,
            num_candidates=candidates,
            num_kept=self.config.selection_len(self.question_len) + answers,
            local_window=local,
            answer_spans=self._unmarked_spans(),
            num_survivors=self._survivors,
        )

    def record(self, cut: Cut) -> None:
        """Take note that ``cut`` was carried out."""
        self._before = (self.dropped, self._marked, self._survivors)
        self.dropped += cut.num_dropped
        self._marked = self._num_settled()
        self._survivors = cut.num_kept

    def undo(self) -> None:
        """Take the last compaction back: the window is again what it was before."""
        self.dropped, self._marked, self._survivors = self._before

    def restart(self) -> None:
        """Forget what was dropped: the request lost its KV and will compute all of it again."""
        self.dropped = 0
        self._marked = 0
        self._survivors = 0

    def _answers_before(self, index: int) -> int:
        """Answer tokens among the first ``index`` after the question."""
        spans = self.tracker.answer_spans
        return sum(max(0, min(end, index) - start) for start, end in spans)

    def _num_settled(self) -> int:
        """Tokens after the question whose score is written: the newest may still be in computation."""
        return max(0, self.tracker.num_seen - 1)

    def _unmarked_spans(self) -> tuple[tuple[int, int], ...]:
        """New answer spans as window positions; the window's tail since the last cut is contiguous.

        The newest token waits for the next cut, or its forward would overwrite the mark. It cannot be
        dropped before: it is in the local window.
        """
        shift = self.question_len - self.dropped
        settled = self._num_settled()
        return tuple(
            (max(start, self._marked) + shift, min(end, settled) + shift)
            for start, end in self.tracker.answer_spans
            if end > self._marked and start < settled
        )
