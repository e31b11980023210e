"""What DynTS tells: a request's numbers in ``meta_info`` and a part of the decode log line."""

from dataclasses import dataclass, field

from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats

from sglang_dynts.names import BACKEND_NAME
from sglang_dynts.radix_cache import DynTSRadixCache
from sglang_dynts.request_report import Totals
from sglang_dynts.runtime import is_enabled


class DynTSOutputStreamer(SchedulerOutputStreamer):
    """Sends each request's DynTS numbers along with its output."""

    has_additional_customized_info = True

    def build_additional_customized_info(self, reqs: list) -> dict[str, list]:
        """Return one object of numbers per request."""
        cache = self.tree_cache
        assert isinstance(cache, DynTSRadixCache), type(cache)
        held = [req.kv.kv_allocated_len if req.kv.holds_kv else 0 for req in reqs]
        numbers = [cache.report_of(req).as_dict(n) for req, n in zip(reqs, held, strict=True)]
        return {BACKEND_NAME: numbers}


def choose_streamer(streamer_class, _scheduler):
    """AFTER Scheduler.get_output_streamer_class: the streamer that reports."""
    return DynTSOutputStreamer if is_enabled() else streamer_class


def report_one_object(manager, meta_info, state, customized_info, index, finish_reason):
    """BEFORE TokenizerManager.update_request_meta_info: the newest numbers as one object.

    SGLang appends what a request reports to a list; these numbers are cumulative already.
    """
    if BACKEND_NAME not in customized_info:
        return None
    meta_info[BACKEND_NAME] = customized_info[BACKEND_NAME][index]
    rest = {key: values for key, values in customized_info.items() if key != BACKEND_NAME}
    return (manager, meta_info, state, rest, index, finish_reason), {}


@dataclass
class DynTSPoolStats(PoolStats):
    """Pool statistics whose decode log line counts what DynTS dropped."""

    totals: Totals = field(default_factory=Totals)

    def get_decode_usage_msg_parts(self) -> list[str]:
        """Return SGLang's parts and ours."""
        return [
            *super().get_decode_usage_msg_parts(),
            f"#compactions: {self.totals.num_compactions}",
            f"#early: {self.totals.num_early}",
            f"#dropped-token: {self.totals.num_dropped}",
        ]


def add_totals(stats: PoolStats, observer) -> PoolStats | None:
    """AFTER SchedulerPoolStatsObserver.get_pool_stats: carry our totals to the log."""
    if not isinstance(observer.tree_cache, DynTSRadixCache):
        return None
    return DynTSPoolStats(**vars(stats), totals=observer.tree_cache.totals)
