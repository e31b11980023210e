"""The three numbers of the method, and every length that follows from them."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import floor

MOST_TOKENS = 1 << 31


@dataclass(frozen=True)
class DynTSConfig:
    """Budget, local window and keep ratio of one request, in tokens of KV.

    Names follow the paper: ``budget`` is B, ``local_window`` W_l, ``keep_ratio`` r. ``min_selection``
    is the least number of thinking tokens that survive a compaction however long the question is;
    ``None`` means a quarter of :attr:`keep_len`.

    Raises:
        ValueError: naming the field, its value and a remedy.
    """

    budget: int
    local_window: int
    keep_ratio: float
    min_selection: int | None = None

    def __post_init__(self) -> None:
        _require_int("local_window", self.local_window, least=1)
        _require_int("budget", self.budget, least=2)
        _require_ratio("keep_ratio", self.keep_ratio)
        if self.budget <= self.local_window:
            raise ValueError(
                f"budget={self.budget} must be larger than local_window={self.local_window}: "
                "raise the budget or shorten the local window"
            )
        if self.min_selection is not None:
            _require_int("min_selection", self.min_selection, least=0)
            if self.min_selection > self.keep_len:
                raise ValueError(
                    f"min_selection={self.min_selection} must not exceed keep_ratio * (budget - "
                    f"local_window) = {self.keep_len}: lower it or raise the budget"
                )

    @cached_property
    def keep_len(self) -> int:
        """K = floor(r * (B - W_l)): the non-local tokens that survive, question included."""
        return floor(Fraction(str(self.keep_ratio)) * (self.budget - self.local_window))

    @property
    def period(self) -> int:
        """B - T: the tokens a request thinks between two compactions; at least 1."""
        return self.budget - self.local_window - self.keep_len

    @property
    def selection_floor(self) -> int:
        """Least number of thinking tokens outside the local window that survive."""
        return self.keep_len // 4 if self.min_selection is None else self.min_selection

    def selection_len(self, question_len: int) -> int:
        """Thinking tokens outside the local window that survive, for a question of this length."""
        return max(self.keep_len - question_len, self.selection_floor)

    def retained_len(self, question_len: int) -> int:
        """T: question and thinking tokens that a compaction leaves; grows with a long question."""
        return question_len + self.selection_len(question_len) + self.local_window

    def budget_for(self, question_len: int) -> int:
        """B of a request with this question: most question and thinking tokens it holds.

        Equals ``budget`` unless the question leaves less room than ``selection_floor``; the period
        stays the same. Answer tokens come on top.
        """
        return self.retained_len(question_len) + self.period


def _require_int(field: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field}={value!r} must be an integer of at least {least}")
    if not least <= value <= MOST_TOKENS:
        raise ValueError(f"{field}={value} must lie between {least} and {MOST_TOKENS}")


def _require_ratio(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{field}={value!r} must be a number between 0 and 1, both excluded")
    if not 0 < value < 1:
        raise ValueError(f"{field}={value} must lie between 0 and 1, both excluded")


PAPER_CONFIG = DynTSConfig(budget=5000, local_window=2000, keep_ratio=0.4)
"""The paper's setting for R1-Distill-Qwen-7B on AIME24, AIME25, AMC23 and GPQA-D."""
