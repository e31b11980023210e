"""The numbers one request reports: ``meta_info.dynts``."""

from dataclasses import dataclass

from sgl_dynts.window import RequestWindow


@dataclass
class RequestReport:
    """A request's window and what it went through, over all its lives if it was retracted.

    Lengths count KV tokens. ``window`` is None for a request that DynTS is switched off for.
    """

    window: RequestWindow | None
    question_len: int
    num_compactions: int = 0
    num_dropped: int = 0
    end_len: int = 0
    peak_len: int = 0

    def compacted(self, window_len: int, num_dropped: int) -> None:
        """Count a compaction of a window of this length."""
        self.num_compactions += 1
        self.num_dropped += num_dropped
        self.peak_len = max(self.peak_len, window_len)

    def close(self, window_len: int) -> None:
        """Take note of the length at which the row was given back."""
        self.end_len = window_len
        self.peak_len = max(self.peak_len, window_len)
        if self.window is not None:
            self.window.restart()

    def as_dict(self, window_len: int) -> dict[str, int | float | bool]:
        """Return the public numbers; ``window_len`` is the length held now, 0 once released."""
        now = window_len or self.end_len
        numbers: dict[str, int | float | bool] = {
            "enabled": self.window is not None,
            "question_len": self.question_len,
            "compactions": self.num_compactions,
            "dropped_tokens": self.num_dropped,
            "window_len": now,
            "peak_window_len": max(self.peak_len, now),
        }
        if self.window is not None:
            config = self.window.config
            numbers |= {
                "budget": config.budget_for(self.question_len),
                "local_window": config.local_window,
                "keep_ratio": config.keep_ratio,
            }
        return numbers


@dataclass
class Totals:
    """What one scheduler has compacted since it started."""

    num_compactions: int = 0
    num_dropped: int = 0

    def add(self, num_dropped: int) -> None:
        """Count one compaction."""
        self.num_compactions += 1
        self.num_dropped += num_dropped
