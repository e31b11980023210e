"""What a simulation measures, in virtual time, and what the scheduler's iterations cost the host.

The host's cost is the processor time of the scheduler's thread: what it would take on a core of its own.
"""

from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, median, quantiles
from typing import Any, NamedTuple

from benchmark.simulation.clock import VirtualClock
from benchmark.simulation.job import PlannedRequest, Workload
from benchmark.simulation.stand_in import Forward

MOST_POINTS = 1000
"""A time series is thinned to between half of this and this many points."""
RUNNING_STEP = 32
"""Iterations are grouped by running requests, this many to a group."""


class Load(NamedTuple):
    """What the scheduler holds between two forwards."""

    queue_len: int
    used_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A request's end, at a virtual moment."""

    moment: float
    output_len: int
    prompt_len: int
    cached_len: int
    num_retractions: int


@dataclass
class Sums:
    """Sums since the start: virtual seconds, tokens generated, and both lengths times seconds."""

    seconds: float = 0.0
    generated: int = 0
    running_seconds: float = 0.0
    held_seconds: float = 0.0

    def minus(self, other: "Sums") -> "Sums":
        """Return what came after ``other``."""
        before = asdict(other)
        return Sums(**{name: value - before[name] for name, value in asdict(self).items()})


@dataclass
class Series:
    """Points over time, thinned evenly as they grow in number."""

    points: list[tuple[float, ...]] = field(default_factory=list)
    _stride: int = 1
    _seen: int = 0

    def is_due(self) -> bool:
        """Count a candidate; whether it is to be added."""
        self._seen += 1
        return self._seen % self._stride == 0

    def add(self, *point: float) -> None:
        """Add a point."""
        self.points.append(point)
        if len(self.points) >= MOST_POINTS:
            self.points = self.points[1::2]
            self._stride *= 2

    def columns(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Return the points as named columns."""
        return {name: [round(p[i], 3) for p in self.points] for i, name in enumerate(names)}


class Window:
    """The stretch of a simulation that rates are taken from; one rule for both sides.

    With clients it opens when as many requests have finished as there are clients, or as the first wave
    has, and closes with the arrival of the last request: the number outstanding is constant, so what is
    in flight at both ends is alike. With a rate it lasts from the arrival of the first quarter of the
    requests to that of the last. With neither it lasts as long as requests wait.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self.start: Sums | None = None
        self.end: Sums | None = None

    def observe(self, sums: Sums, num_arrived: int, num_finished: int, queue_len: int) -> None:
        """Take note of the state after a forward."""
        if not self._is_open(num_arrived, num_finished, queue_len):
            return
        self.end = replace(sums)
        self.start = self.start or self.end

    def _is_open(self, num_arrived: int, num_finished: int, queue_len: int) -> bool:
        workload = self._workload
        if workload.clients is not None:
            first = workload.first_wave or workload.clients
            return num_finished >= first and num_arrived < workload.num_requests
        if workload.rate is not None:
            return workload.num_requests <= 4 * num_arrived < 4 * workload.num_requests
        return queue_len > 0

    def sums(self) -> Sums:
        """Sums over the window; all zero if it never opened."""
        return self.end.minus(self.start) if self.start and self.end else Sums()


class Recorder:
    """Listens to forwards, finished requests and iterations of one simulation."""

    def __init__(self, clock: VirtualClock, workload: Workload, plan: Sequence[PlannedRequest]) -> None:
        self.finished: dict[str, Finished] = {}
        self.window = Window(workload)
        self.sums = Sums()
        self.num_compactions = 0
        self.prefilled = 0
        self.peak_running = 0
        self._clock = clock
        self._arrival: dict[str, float] = {}
        self._output_len = {request.rid: request.output_len for request in plan}
        self._first_token: dict[str, float] = {}
        self._running = 0
        self._series = Series()
        self._iterations: dict[int, array] = {}
        self._turns: list[array] = []
        self._host_seconds = self._hook_seconds = 0.0

    def arrived(self, rid: str, moment: float) -> None:
        """Take note of a request that arrived at this virtual moment."""
        self._arrival[rid] = moment

    def forward(self, forward: Forward, load: Load) -> None:
        """Take note of a forward that was just launched."""
        self._running = forward.decoded or self._running
        self.peak_running = max(self.peak_running, forward.decoded)
        self.num_compactions += forward.num_compacted
        self.prefilled += forward.new_tokens
        sums = self.sums
        sums.seconds = self._clock.device
        sums.generated += forward.decoded + len(forward.answered)
        sums.running_seconds += self._running * forward.seconds
        sums.held_seconds += load.used_tokens * forward.seconds
        for rid in forward.answered:
            self._first_token.setdefault(rid, self._clock.device)
        self.window.observe(sums, len(self._arrival), len(self.finished), load.queue_len)
        if forward.decoded and self._series.is_due():
            self._series.add(sums.seconds, forward.decoded, load.used_tokens, load.queue_len)

    def iteration(self, num_running: int, host_seconds: float, hook_seconds: float = 0.0) -> None:
        """Take note of what an iteration that decoded cost the host in processor time, with its hooks."""
        self._host_seconds += host_seconds
        self._hook_seconds += hook_seconds
        group = round(num_running / RUNNING_STEP) * RUNNING_STEP
        self._iterations.setdefault(group, array("d")).append(host_seconds)
        if self._turns:
            self._turns[-1].append(host_seconds)

    def begin_turn(self) -> None:
        """Take note that a turn begins, to which the iterations from here on belong."""
        self._turns.append(array("d"))

    def result(self) -> dict[str, Any]:
        """Return all measures as plain values."""
        window = self.window.sums()
        seconds = window.seconds or float("inf")
        done = self.finished.values()
        return {
            "tokens_per_s": round(window.generated / seconds, 1),
            "running": round(window.running_seconds / seconds, 1),
            "held_tokens": round(window.held_seconds / seconds),
            "window_s": round(window.seconds, 2),
            "makespan_s": round(max((each.moment for each in done), default=0.0), 6),
            "peak_running": self.peak_running,
            "finished": len(done),
            "wrong_lengths": sum(
                each.output_len != self._output_len[rid] for rid, each in self.finished.items()
            ),
            "output_tokens": sum(each.output_len for each in done),
            "generated_tokens": self.sums.generated,
            "prefilled_tokens": self.prefilled,
            "retractions": sum(each.num_retractions for each in done),
            "compactions": self.num_compactions,
            "prefix_hit_rate": _share(done),
            "ttft": self._since_arrival(self._first_token),
            "latency": self._since_arrival({rid: each.moment for rid, each in self.finished.items()}),
            "host_ms": self._host_ms(),
            "hooks_ratio": self._hooks_ratio(),
            "turns_ms": [round(1e3 * fmean(turn), 4) for turn in self._turns if turn],
            "series": self._series.columns(("seconds", "running", "held_tokens", "queue_len")),
        }

    def _since_arrival(self, moments: dict[str, float]) -> dict[str, float]:
        """Virtual seconds from arrival to these moments: mean, median and 99th percentile."""
        waits = sorted(moment - self._arrival[rid] for rid, moment in moments.items())
        if len(waits) < 2:
            return {}
        p99 = quantiles(waits, n=100, method="inclusive")[-1]
        return {"mean": round(fmean(waits), 6), "p50": round(median(waits), 6), "p99": round(p99, 6)}

    def _hooks_ratio(self) -> float | None:
        """Host time of all iterations over what it would be without the hooks; None without any."""
        rest = self._host_seconds - self._hook_seconds
        return round(self._host_seconds / rest, 4) if rest > 0 else None

    def _host_ms(self) -> dict[str, dict[str, float]]:
        """Milliseconds of processor time per decoding iteration, by running requests."""
        return {
            str(group): {
                "median": round(1e3 * median(times), 3),
                "mean": round(1e3 * fmean(times), 3),
                "iterations": len(times),
            }
            for group, times in sorted(self._iterations.items())
        }


def _share(done) -> float:
    prompts = sum(each.prompt_len for each in done)
    return round(sum(each.cached_len for each in done) / prompts, 4) if prompts else 0.0
