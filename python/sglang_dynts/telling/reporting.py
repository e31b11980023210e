"""What DynTS tells: a request's numbers in ``meta_info``, a part of the decode log line, metrics."""

from dataclasses import dataclass
from functools import partial

import torch
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats

from sglang_dynts.boot.configuration import arguments, governs
from sglang_dynts.entry.governed_request import Numbers
from sglang_dynts.entry.tally import Meter
from sglang_dynts.forward.device_state import LoadedPredictor, OnRunner, on_runner
from sglang_dynts.names import BACKEND_NAME
from sglang_dynts.scheduling.governor import Governor, governor_of
from sglang_dynts.telling.metrics import PREDICTOR, Identity, PrometheusMeter, time_calls

SCORED_BATCH_SIZES = (1, 8, 64, 256)
"""Decode batches whose scoring is timed at the start, up to the most that may run."""


class DynTSOutputStreamer(SchedulerOutputStreamer):
    """Sends each request's DynTS numbers along with its output."""

    has_additional_customized_info = True

    def build_additional_customized_info(self, reqs: list) -> dict[str, list]:
        """Return one object of numbers per request, None for a client that is sent nothing yet."""
        governor = governor_of(self.tree_cache)
        assert governor is not None, "a server without DynTS streams as SGLang does"
        sent = (req if req.stream or req.finished() else None for req in reqs)
        return {BACKEND_NAME: [None if req is None else report_now(governor, req) for req in sent]}


def report_now(governor: Governor, req) -> Numbers:
    """Return what a client is told of a request, read up to the newest token it was sent."""
    governed = governor.governed(req)
    if not req.kv.holds_kv:
        return governed.as_dict(0, req.finished())
    governor.read_scores(req)
    return governed.as_dict(governor.held_len(req), req.finished())


def choose_streamer(streamer_class, _scheduler):
    """AFTER Scheduler.get_output_streamer_class: the streamer that reports."""
    return DynTSOutputStreamer if governs() else streamer_class


def report_one_object(manager, meta_info, state, customized_info, index, finish_reason):
    """BEFORE TokenizerManager.update_request_meta_info: the newest numbers as one object.

    SGLang appends what a request reports to a list; these numbers are cumulative already.
    """
    if BACKEND_NAME not in customized_info:
        return None
    numbers = customized_info[BACKEND_NAME][index]
    if numbers is not None:
        meta_info[BACKEND_NAME] = numbers
    rest = {key: values for key, values in customized_info.items() if key != BACKEND_NAME}
    return (manager, meta_info, state, rest, index, finish_reason), {}


@dataclass(kw_only=True)
class DynTSPoolStats(PoolStats):
    """Pool statistics whose decode log line counts what DynTS dropped."""

    governor: Governor

    def get_decode_usage_msg_parts(self) -> list[str]:
        """Return SGLang's parts and ours."""
        totals = self.governor.tally.totals
        return [
            *super().get_decode_usage_msg_parts(),
            f"#compactions: {totals.num_compactions}",
            f"#early: {totals.num_early}",
            f"#dropped-token: {totals.num_dropped}",
        ]

    def update_scheduler_stats(self, stats) -> None:
        """Set our gauges where SGLang sets its own: at log intervals, prefills and when idle."""
        super().update_scheduler_stats(stats)
        self.governor.observe_pool()


def add_totals(stats: PoolStats, observer) -> PoolStats | None:
    """AFTER SchedulerPoolStatsObserver.get_pool_stats: carry our totals to the log and the gauges."""
    governor = governor_of(observer.tree_cache)
    return None if governor is None else DynTSPoolStats(**vars(stats), governor=governor)


def start_meter(_result, scheduler) -> None:
    """AFTER Scheduler.init_output_streamer: let Prometheus hear of a scheduler that just started."""
    governor = governor_of(scheduler.tree_cache)
    if governor is not None:
        governor.tally.meter = new_meter(scheduler, on_runner(scheduler.tp_worker.model_runner))


def new_meter(scheduler, ours: OnRunner) -> Meter:
    """Return what hears of a scheduler's compactions, on the ranks on which SGLang reports metrics."""
    reporter = scheduler.metrics_reporter
    if not reporter.current_scheduler_metrics_enabled:
        return Meter()
    device = torch.device(scheduler.tp_worker.model_runner.device)
    is_cuda = device.type == "cuda"
    meter = PrometheusMeter(reporter.metrics_collector, is_cuda, partial(_identity, ours))
    meter.tell_policy(arguments().dynts_policy)
    meter.tell_predictor()
    if ours.predictor is not None:
        meter.scoring_takes(_scoring_seconds(ours.predictor, device, scheduler.max_running_requests))
    return meter


def _identity(ours: OnRunner) -> Identity:
    if ours.predictor is None:
        return None, False
    facts = ours.predictor.facts()
    return {name: str(facts[name]) for name in PREDICTOR.labels}, ours.kept is not None


def _scoring_seconds(loaded: LoadedPredictor, device: torch.device, most: int) -> dict[int, float]:
    """Time the predictor by itself; inside a captured graph it cannot be told from the model."""
    width = loaded.predictor.hidden_size
    sizes = [size for size in SCORED_BATCH_SIZES if size <= most]
    batches = {size: torch.zeros(size, width, device=device) for size in sizes}
    with torch.inference_mode():
        return {
            size: time_calls(partial(loaded.predictor, batch), device) for size, batch in batches.items()
        }
