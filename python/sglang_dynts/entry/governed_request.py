"""All that is ours of one request: its window, its policy, its copy, and the numbers it reports."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sgl_dynts.policies import FULL, PREDICTOR
from sgl_dynts.window import RequestWindow
from sglang_dynts.entry.host_copies import HostCopy
from sglang_dynts.entry.token_log import TokenLog, Tokens

Numbers = dict[str, int | float | bool | str | list[int] | Tokens]
"""What a client reads under ``meta_info.dynts``."""


def _nobody() -> None:
    """Stand in for the weak reference of an object without a request."""


@dataclass(eq=False)
class GovernedRequest:
    """A request's window and what it went through, over all its lives if it was retracted.

    Lengths count KV tokens. ``window`` is None for a request that DynTS is switched off for; ``copy`` is
    what a retracted request goes on from.
    """

    window: RequestWindow | None
    question_len: int
    policy: str = PREDICTOR
    """The name of the policy that scores its tokens."""
    detailed: bool = False
    """Whether the request asked to be told where it was compacted."""
    tokens: TokenLog | None = None
    """What became of its tokens, if it asked for that."""
    req: Callable[[], Any] = _nobody
    """A weak reference to SGLang's request."""
    copy: HostCopy | None = None
    num_compactions: int = 0
    num_early: int = 0
    num_dropped: int = 0
    num_resumptions: int = 0
    compacted_at: list[int] = field(default_factory=list)
    """Tokens the request had seen at each compaction, the one in computation included."""
    dropped_then: list[int] = field(default_factory=list)
    """Tokens that each of these compactions dropped."""
    end_len: int = 0
    peak_len: int = 0

    @property
    def own_window(self) -> RequestWindow:
        """The window of a request that is known to have one."""
        assert self.window is not None, "only governed requests are compacted, copied and scored"
        return self.window

    @property
    def dropped(self) -> int:
        """Tokens that are gone from its row."""
        return 0 if self.window is None else self.window.dropped

    @property
    def has_long_question(self) -> bool:
        """Whether the question raised the request's budget."""
        return self.window is not None and self.window.budget > self.window.config.budget

    def compacted(self, seq_len: int, window_len: int, num_dropped: int, early: bool) -> None:
        """Count a compaction of a window of this length."""
        self.num_compactions += 1
        self.num_early += early
        self.compacted_at.append(seq_len)
        self.dropped_then.append(num_dropped)
        self.num_dropped += num_dropped
        self.peak_len = max(self.peak_len, window_len)

    def undo(self, num_dropped: int, early: bool) -> None:
        """Forget the last compaction."""
        self.own_window.undo()
        if self.tokens is not None:
            self.tokens.undo()
        self.num_compactions -= 1
        self.num_early -= early
        self.num_dropped -= num_dropped
        self.compacted_at.pop()
        self.dropped_then.pop()

    def close(self, window_len: int) -> None:
        """Take note of the length at which the row was given back."""
        self.end_len = window_len
        self.peak_len = max(self.peak_len, window_len)

    def restart(self) -> None:
        """Take note that the request's KV is gone and nothing of it is kept."""
        self.compacted_at.clear()
        self.dropped_then.clear()
        if self.tokens is not None:
            self.tokens.restart()
        if self.window is not None:
            self.window.restart()

    def as_dict(self, window_len: int, finished: bool = True) -> Numbers:
        """Return the public numbers.

        Args:
            window_len: tokens held now, 0 once released.
            finished: whether this is the last report, which tells of all tokens and not of the newest.
        """
        now = window_len or self.end_len
        numbers: Numbers = self._settings | {
            "compactions": self.num_compactions,
            "early_compactions": self.num_early,
            "resumptions": self.num_resumptions,
            "dropped_tokens": self.num_dropped,
            "window_len": now,
            "peak_window_len": max(self.peak_len, now),
        }
        if self.detailed:
            numbers["compacted_at"] = list(self.compacted_at)
            numbers["dropped_then"] = list(self.dropped_then)
        if self.tokens is not None:
            numbers["tokens"] = self.tokens.whole() if finished else self.tokens.newest()
        return numbers

    @cached_property
    def _settings(self) -> Numbers:
        """What of the numbers never changes."""
        settings: Numbers = {
            "enabled": self.window is not None,
            "policy": self.policy if self.window is not None else FULL,
            "question_len": self.question_len,
        }
        if self.window is not None:
            settings |= self.window.config.given() | {"budget": self.window.budget}
        return settings
