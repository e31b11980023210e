"""What Prometheus is told under ``--enable-metrics``, every name once.

SGLang's own collectors choose the labels, the ranks that report and the client library; see
:class:`PrometheusMeter`. Counters move when something happens, gauges when SGLang sets its own.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sglang_dynts.entry.tally import Meter

Identity = tuple[dict[str, str] | None, bool]
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
_TOKENS = tuple(float(1 << power) for power in range(6, 18))
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


@dataclass(frozen=True)
class Metric:
    """One metric: its full name, what it counts, and its labels beside those of SGLang."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


COMPACTIONS = Metric(
    "sglang:dynts_compactions_total",
    COUNTER,
    "Compactions of a request's window, by reason: due, or early before its budget was reached.",
    ("reason",),
)
DROPPED = Metric("sglang:dynts_dropped_tokens_total", COUNTER, "KV tokens that compactions dropped.")
UNDONE = Metric(
    "sglang:dynts_undone_compactions_total",
    COUNTER,
    "Compactions undone because their request was retracted in the same iteration.",
)
RESUMPTIONS = Metric(
    "sglang:dynts_resumptions_total",
    COUNTER,
    "Retracted requests that went on from a host copy of their window.",
)
REQUESTS = Metric(
    "sglang:dynts_requests_total",
    COUNTER,
    "Requests that reached the scheduler, by mode: governed, or opted_out by custom_params.dynts.",
    ("mode",),
)
LONG_QUESTIONS = Metric(
    "sglang:dynts_long_questions_total",
    COUNTER,
    "Governed requests whose question is too long for their budget, which was raised.",
)
WINDOW_LEN = Metric(
    "sglang:dynts_window_len",
    HISTOGRAM,
    "KV tokens that a request held when it was compacted.",
    buckets=_TOKENS,
)
ROUND_SECONDS = Metric(
    "sglang:dynts_compaction_seconds",
    HISTOGRAM,
    "Host time of a round that compacted: choosing, planning, launching.",
    buckets=_SECONDS,
)
DEVICE_SECONDS = Metric(
    "sglang:dynts_compaction_device_seconds",
    HISTOGRAM,
    "Time of a round's kernels on a CUDA device, by events that are read later; empty on a CPU.",
    buckets=_SECONDS,
)
HELD = Metric(
    "sglang:dynts_kv_tokens_held", GAUGE, "KV tokens held by the governed requests that are running."
)
SAVED = Metric(
    "sglang:dynts_kv_tokens_saved",
    GAUGE,
    "KV tokens that the same requests would hold besides with a full cache.",
)
HOST_BYTES = Metric(
    "sglang:dynts_host_copy_bytes", GAUGE, "Host memory taken by windows of retracted requests."
)
SCORING_SECONDS = Metric(
    "sglang:dynts_scoring_seconds",
    GAUGE,
    "Time of the predictor alone for a decode batch of this size, measured at start-up.",
    ("batch_size",),
)
PREDICTOR = Metric(
    "sglang:dynts_predictor_info",
    GAUGE,
    "1, labelled with the predictor in use; 0 for one that a weight update replaced.",
    ("sha256", "base_model", "target"),
)
KEPT = Metric(
    "sglang:dynts_predictor_kept",
    GAUGE,
    "1 while the predictor is older than the model's weights, which were updated without one.",
)
POLICY = Metric(
    "sglang:dynts_policy_info",
    GAUGE,
    "1, labelled with the policy of requests that name none.",
    ("policy",),
)
METRICS = (
    *(COMPACTIONS, DROPPED, UNDONE, RESUMPTIONS, REQUESTS, LONG_QUESTIONS),
    *(WINDOW_LEN, ROUND_SECONDS, DEVICE_SECONDS),
    *(HELD, SAVED, HOST_BYTES, SCORING_SECONDS, PREDICTOR, KEPT, POLICY),
)


class PrometheusMeter(Meter):
    """Reports under the labels of SGLang's scheduler collector, through the same client library.

    Every series without a free label exists from the start, at 0.

    Args:
        collector: SGLang's ``SchedulerMetricsCollector`` of this scheduler.
        is_cuda: whether device time can be taken.
        predictor: who the predictor in use is, as labels, and whether it is older than the weights.
    """

    def __init__(
        self, collector: Any, is_cuda: bool, predictor: Callable[[], Identity] = lambda: (None, False)
    ) -> None:
        self._labels = dict(collector.labels)
        self._predictor = predictor
        self._told: dict[str, str] | None = None
        self._parents = _register(collector)
        self._due = self._series(COMPACTIONS, reason="due")
        self._early = self._series(COMPACTIONS, reason="early")
        self._dropped = self._series(DROPPED)
        self._undone = self._series(UNDONE)
        self._resumptions = self._series(RESUMPTIONS)
        self._governed = self._series(REQUESTS, mode="governed")
        self._opted_out = self._series(REQUESTS, mode="opted_out")
        self._long_questions = self._series(LONG_QUESTIONS)
        self._window_len = self._series(WINDOW_LEN)
        self._round_seconds = self._series(ROUND_SECONDS)
        self._held = self._series(HELD)
        self._saved = self._series(SAVED)
        self._host_bytes = self._series(HOST_BYTES)
        self._kept = self._series(KEPT)
        self._device = DeviceTimes(self._series(DEVICE_SECONDS).observe, _cuda_event if is_cuda else None)

    def request_seen(self, governed: bool, is_long: bool) -> None:
        """Count a request."""
        (self._governed if governed else self._opted_out).inc()
        if is_long:
            self._long_questions.inc()

    def compacted(self, window_len: int, num_dropped: int, early: bool) -> None:
        """Count a compaction."""
        (self._early if early else self._due).inc()
        self._dropped.inc(num_dropped)
        self._window_len.observe(window_len)

    def undone(self) -> None:
        """Count an undone compaction."""
        self._undone.inc()

    def resumed(self) -> None:
        """Count a resumption."""
        self._resumptions.inc()

    def round_took(self, seconds: float) -> None:
        """Observe a round's host time."""
        self._round_seconds.observe(seconds)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Take the device's time without waiting for it."""
        with self._device.taken():
            yield

    def observe_pool(self, held: int, saved: int, host_bytes: int) -> None:
        """Set the gauges, and read device times that have become known."""
        self._held.set(held)
        self._saved.set(saved)
        self._host_bytes.set(host_bytes)
        self._device.read()
        self.tell_predictor()

    def scoring_takes(self, seconds: dict[int, float]) -> None:
        """Set the predictor's times; called once."""
        for batch_size, value in seconds.items():
            self._series(SCORING_SECONDS, batch_size=str(batch_size)).set(value)

    def tell_policy(self, name: str) -> None:
        """Set the series of the server's policy; called once."""
        self._series(POLICY, policy=name).set(1)

    def tell_predictor(self) -> None:
        """Set the series of the predictor in use, and take back that of one that weights replaced."""
        labels, kept = self._predictor()
        if self._told is not None and self._told != labels:
            self._series(PREDICTOR, **self._told).set(0)
        if labels is not None:
            self._series(PREDICTOR, **labels).set(1)
        self._told = labels
        self._kept.set(kept)

    def _series(self, metric: Metric, **labels: str) -> Any:
        return self._parents[metric].labels(**self._labels, **labels)


class DeviceTimes:
    """Times between two events on the device's stream, observed once they are known.

    Nothing waits for the device: what is not finished yet is looked at the next time. At most
    ``MOST_PENDING`` measurements wait; beyond that a round is not measured.
    """

    MOST_PENDING = 64

    def __init__(self, observe: Callable[[float], None], new_event: Callable[[], Any] | None) -> None:
        self._observe = observe
        self._new_event = new_event
        self._pending: deque[tuple[Any, Any]] = deque()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Measure what is launched inside."""
        self.read()
        if self._new_event is None or len(self._pending) >= self.MOST_PENDING:
            yield
            return
        start, end = self._new_event(), self._new_event()
        start.record()
        yield
        end.record()
        self._pending.append((start, end))

    def read(self) -> None:
        """Observe the finished measurements, oldest first."""
        while self._pending and self._pending[0][1].query():
            start, end = self._pending.popleft()
            self._observe(start.elapsed_time(end) / 1000)


def _register(collector: Any) -> dict[Metric, Any]:
    # Only now: the library reads PROMETHEUS_MULTIPROC_DIR, which SGLang sets, when it is imported.
    from prometheus_client import Counter, Gauge, Histogram

    classes: dict[str, Callable[..., Any]] = {
        COUNTER: collector._counter_cls or Counter,
        GAUGE: partial(collector._gauge_cls or Gauge, multiprocess_mode="mostrecent"),
        HISTOGRAM: collector._histogram_cls or Histogram,
    }
    made = {}
    for metric in METRICS:
        names = [*collector.labels, *metric.labels]
        buckets = {"buckets": metric.buckets} if metric.kind == HISTOGRAM else {}
        made[metric] = classes[metric.kind](
            name=metric.name, documentation=metric.help, labelnames=names, **buckets
        )
    return made


def _cuda_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def time_calls(call: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Seconds of one call, the least of several; waits for the device, so only for start-up."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)
