"""The three numbers of the method, and every length that follows from them."""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from math import floor
from typing import Any

MOST_TOKENS = 1 << 31
WINDOW_FIELDS = ("budget", "local_window", "keep_ratio")
MOST_QUOTED = 200
"""Characters of somebody's input that a message repeats."""


def quoted(value: object) -> str:
    """Return a value as a message shows it, of bounded length."""
    try:
        return shortened(repr(value))
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets without end
        return f"({type(value).__name__}, too large to show)"


def as_name(text: str) -> str:
    """Return a field's name as a message shows it: bounded, and what cannot be printed written out."""
    return shortened(text if text.isprintable() else repr(text)[1:-1])


def shortened(text: str) -> str:
    """Return a text as a message shows it, of bounded length."""
    return text if len(text) <= MOST_QUOTED else f"{text[: MOST_QUOTED - 3]}..."


@dataclass(frozen=True)
class Windows:
    """What somebody says of budget, local window and keep ratio: flags, a predictor's header, a command.

    Names follow the paper: ``budget`` is B and ``local_window`` W_l, in tokens of KV, ``keep_ratio`` r.
    ``None`` means "not given"; any other value is checked.

    Raises:
        ValueError: naming the field, its value and what it may be.
    """

    budget: int | None = None
    local_window: int | None = None
    keep_ratio: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            _require(name, value)

    def given(self) -> dict[str, Any]:
        """Return the values that are given, by field."""
        values = {name: getattr(self, name) for name in WINDOW_FIELDS}
        return {name: value for name, value in values.items() if value is not None}

    def missing(self) -> list[str]:
        """Return the fields that are not given."""
        return [name for name in WINDOW_FIELDS if getattr(self, name) is None]

    def over(self, default: "Windows") -> "Windows":
        """Return these, what is not given taken from ``default``."""
        return Windows(**default.given() | self.given())

    def complete(self, min_selection: int | None = None) -> "DynTSConfig":
        """Return them as a configuration.

        Raises:
            ValueError: one is missing, or they do not fit together.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in WINDOW_FIELDS}
        return DynTSConfig(**values, min_selection=min_selection)

    def flags(self, prefix: str = "--") -> list[str]:
        """Return the words of a command line that give them."""
        return [
            word for name, value in self.given().items() for word in (flag_of(name, prefix), str(value))
        ]


@dataclass(frozen=True)
class DynTSConfig(Windows):
    """Budget, local window and keep ratio of one request: all given, and they fit together.

    ``min_selection`` is the least number of thinking tokens that survive a compaction however long the
    question is; ``None`` means a quarter of :attr:`keep_len`.

    Raises:
        ValueError: naming the field, its value and a remedy.
    """

    budget: int = field()
    local_window: int = field()
    keep_ratio: float = field()
    min_selection: int | None = None

    def __post_init__(self) -> None:
        for name in WINDOW_FIELDS:
            _require(name, getattr(self, name))
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


def flag_of(name: str, prefix: str = "--") -> str:
    """Return the flag that gives a field."""
    return prefix + name.replace("_", "-")


def in_flags(error: ValueError, prefix: str = "--") -> str:
    """Return the message of an error of this module, its ``field=value`` told as a flag."""
    name, rest = str(error).split("=", 1)
    return f"{flag_of(name, prefix)} {rest}"


def _require(name: str, value: object) -> None:
    if name == "keep_ratio":
        _require_ratio(name, value)
    else:
        _require_int(name, value, least=2 if name == "budget" else 1)


def _require_int(field: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1 != 0:
        raise ValueError(f"{field}={quoted(value)} must be an integer of at least {least}")
    if not least <= value <= MOST_TOKENS:
        raise ValueError(f"{field}={quoted(value)} must lie between {least} and {MOST_TOKENS}")
    if isinstance(value, float):
        raise ValueError(f"{field}={quoted(value)} must be an integer of at least {least}")


def _require_ratio(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{field}={quoted(value)} must be a number between 0 and 1, both excluded")
    if not 0 < value < 1:
        raise ValueError(f"{field}={quoted(value)} must lie between 0 and 1, both excluded")


PAPER_CONFIG = DynTSConfig(budget=5000, local_window=2000, keep_ratio=0.4)
"""The paper's setting for R1-Distill-Qwen-7B on AIME24, AIME25, AMC23 and GPQA-D."""
PAPER_CONFIGS = {"qwen-7b": PAPER_CONFIG, "llama-8b": replace(PAPER_CONFIG, keep_ratio=0.3)}
"""The paper's settings for its two models there, by the names that the roofline has for their shapes."""
SHARE_OF_CONTEXT = 4
"""Of a model's context length, one part in so many is the budget where nothing recommends another."""


def windows_for(context_len: int, given: Windows) -> Windows:
    """Return windows for a model that comes without recommendations.

    The paper's budget, or a quarter of a shorter context; the paper's proportions.

    Args:
        context_len: most tokens of a request.
        given: what somebody asks for; a budget among it is what the local window is a share of.
    """
    budget = given.budget or max(2, min(PAPER_CONFIG.budget, context_len // SHARE_OF_CONTEXT))
    local_window = max(1, budget * PAPER_CONFIG.local_window // PAPER_CONFIG.budget)
    return given.over(Windows(budget, local_window, PAPER_CONFIG.keep_ratio))
