"""What a scheduler has seen and done: its totals, and who else hears of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Totals:
    """What one scheduler has seen and done since it started.

    ``num_undone`` compactions are counted as compactions too; ``num_long_questions`` governed requests
    have a budget that their question raised.
    """

    num_compactions: int = 0
    num_early: int = 0
    num_dropped: int = 0
    num_undone: int = 0
    num_resumptions: int = 0
    num_governed: int = 0
    num_opted_out: int = 0
    num_long_questions: int = 0


class Meter:
    """Hears what DynTS does; this one is for servers without metrics and remembers nothing."""

    def request_seen(self, governed: bool, is_long: bool) -> None:
        """A request reached the scheduler; ``is_long`` if its question raised its budget."""

    def compacted(self, window_len: int, num_dropped: int, early: bool) -> None:
        """A window of this length was compacted."""

    def undone(self) -> None:
        """The last compaction of a request was undone."""

    def resumed(self) -> None:
        """A retracted request went on from its copy."""

    def round_took(self, seconds: float) -> None:
        """A round that compacted took this long on the host."""

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Stand around the launch of a round's kernels."""
        yield

    def observe_pool(self, held: int, saved: int, host_bytes: int) -> None:
        """What running requests hold and save now, in tokens, and the bytes of host copies."""

    def scoring_takes(self, seconds: dict[int, float]) -> None:
        """The predictor's time by batch size, measured at the start."""


class Tally:
    """Counts in ``totals``, and passes on to ``meter`` what it counts."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.meter = Meter()

    def request_seen(self, governed: bool, is_long: bool) -> None:
        """Count a request."""
        self.totals.num_governed += governed
        self.totals.num_opted_out += not governed
        self.totals.num_long_questions += is_long
        self.meter.request_seen(governed, is_long)

    def compacted(self, window_len: int, num_dropped: int, early: bool) -> None:
        """Count a compaction of a window of this length."""
        self.totals.num_compactions += 1
        self.totals.num_early += early
        self.totals.num_dropped += num_dropped
        self.meter.compacted(window_len, num_dropped, early)

    def undone(self) -> None:
        """Count a compaction that was undone."""
        self.totals.num_undone += 1
        self.meter.undone()

    def resumed(self) -> None:
        """Count a retracted request that goes on."""
        self.totals.num_resumptions += 1
        self.meter.resumed()
