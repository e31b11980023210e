"""Prometheus gets every number under one name, and the dashboard and the page use these names."""

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats
from sglang.srt.observability.metrics_collector import SchedulerStats

import sglang_dynts
from sglang_dynts.entry.tally import Meter
from sglang_dynts.forward.device_state import OnRunner
from sglang_dynts.telling import metrics
from sglang_dynts.telling.metrics import METRICS, DeviceTimes, PrometheusMeter
from sglang_dynts.telling.reporting import add_totals, new_meter
from tests.seam.engine import OFF, PROMPT, Engine, request, thoughts

PACKAGE = Path(sglang_dynts.__file__).parent
LABELS = {"model_name": "m", "tp_rank": 0}
SUFFIXES = {
    metrics.COUNTER: ("",),
    metrics.GAUGE: ("",),
    metrics.HISTOGRAM: ("_bucket", "_sum", "_count"),
}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def collector(registry) -> SimpleNamespace:
    """What our meter reads of SGLang's collector."""
    return SimpleNamespace(
        labels=LABELS,
        _counter_cls=partial(Counter, registry=registry),
        _gauge_cls=partial(Gauge, registry=registry),
        _histogram_cls=partial(Histogram, registry=registry),
    )


@pytest.fixture
def value(registry):
    def get(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"model_name": "m", "tp_rank": "0"} | labels)

    return get


@pytest.fixture
def engine(serve, collector) -> Engine:
    serve("--attention-backend", "dynts")
    engine = Engine()
    engine.governor.tally.meter = PrometheusMeter(collector, is_cuda=False)
    return engine


def exposed_names() -> set[str]:
    return {metric.name + suffix for metric in METRICS for suffix in SUFFIXES[metric.kind]}


def test_a_request_s_compactions_are_counted_as_its_own_report_counts_them(engine, value):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 40))
    numbers = engine.governed(req).as_dict(req.kv.kv_allocated_len)
    assert numbers["compactions"] == 4
    assert value("sglang:dynts_compactions_total", reason="due") == 4
    assert value("sglang:dynts_compactions_total", reason="early") == 0
    assert value("sglang:dynts_dropped_tokens_total") == numbers["dropped_tokens"] == 28
    assert value("sglang:dynts_window_len_count") == 4
    assert value("sglang:dynts_window_len_sum") == 4 * 20
    assert value("sglang:dynts_compaction_seconds_count") == 4
    assert value("sglang:dynts_compaction_device_seconds_count") == 0


def test_requests_are_counted_once_by_mode_and_by_a_question_that_raises_its_budget(engine, value):
    reqs = [engine.prefill(PROMPT), engine.prefill(PROMPT, OFF), engine.prefill(thoughts(60, 9))]
    for req in reqs:
        engine.decode(req, thoughts(100, 3))
    assert value("sglang:dynts_requests_total", mode="governed") == 2
    assert value("sglang:dynts_requests_total", mode="opted_out") == 1
    assert value("sglang:dynts_long_questions_total") == 1
    assert engine.governor.tally.totals.num_governed == 2
    assert engine.governor.tally.totals.num_opted_out == 1
    assert engine.governor.tally.totals.num_long_questions == 1


def test_sglang_s_own_health_checks_are_nobody_s_requests(engine, value):
    probe = request(PROMPT)
    probe.rid = f"{HEALTH_CHECK_RID_PREFIX}_1"
    engine.admit(probe)
    assert value("sglang:dynts_requests_total", mode="governed") == 0


def test_gauges_are_set_where_sglang_sets_its_own(engine, value):
    governed, opted_out = engine.prefill(PROMPT), engine.prefill(PROMPT, OFF)
    engine.decode(governed, thoughts(100, 40))
    running = [governed, opted_out]
    engine.governor.running_reqs = lambda: running
    sglangs: Any = SchedulerStats()
    stats = add_totals(pool_stats(), SimpleNamespace(tree_cache=engine.cache))
    assert stats is not None
    assert value("sglang:dynts_kv_tokens_held") == 0
    stats.update_scheduler_stats(sglangs)
    assert value("sglang:dynts_kv_tokens_held") == governed.kv.kv_allocated_len == 44 - 28
    assert value("sglang:dynts_kv_tokens_saved") == 28
    assert value("sglang:dynts_host_copy_bytes") == 0
    engine.retract(governed)
    stats.update_scheduler_stats(sglangs)
    assert value("sglang:dynts_kv_tokens_held") == 0
    assert value("sglang:dynts_host_copy_bytes") == engine.governor.copies.num_bytes > 0


def test_a_resumption_and_the_compaction_that_it_undoes_are_counted(engine, value):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 15))
    engine.rows.req_to_token[req.kv.req_pool_idx, req.kv.kv_allocated_len] = engine.alloc(1)
    req.kv.kv_allocated_len = req.kv.kv_committed_len = req.kv.kv_allocated_len + 1
    req.output_ids.append(115)  # its forward is in flight when its window is compacted and retracted
    engine.compact(req)
    engine.retract(req)
    engine.admit(req)
    assert engine.governed(req).num_compactions == 0
    assert value("sglang:dynts_compactions_total", reason="due") == 1
    assert value("sglang:dynts_undone_compactions_total") == engine.governor.tally.totals.num_undone == 1
    assert value("sglang:dynts_resumptions_total") == engine.governor.tally.totals.num_resumptions


def test_the_predictor_tells_its_identity_and_its_times(collector, value):
    identity = {"sha256": "ab", "base_model": "b", "target": "t"}
    told = [(identity, False)]
    meter = PrometheusMeter(collector, is_cuda=False, predictor=lambda: told[-1])
    meter.scoring_takes({1: 0.25, 8: 0.5})
    meter.observe_pool(0, 0, 0)
    assert value("sglang:dynts_predictor_info", **identity) == 1
    assert value("sglang:dynts_predictor_kept") == 0
    told.append((identity | {"sha256": "cd"}, True))
    meter.observe_pool(0, 0, 0)
    assert value("sglang:dynts_predictor_info", **identity) == 0
    assert value("sglang:dynts_predictor_info", **identity | {"sha256": "cd"}) == 1
    assert value("sglang:dynts_predictor_kept") == 1
    assert value("sglang:dynts_scoring_seconds", batch_size="1") == 0.25
    assert value("sglang:dynts_scoring_seconds", batch_size="8") == 0.5


def test_a_scheduler_that_reports_no_metrics_gets_a_meter_that_does_nothing():
    reporter = SimpleNamespace(current_scheduler_metrics_enabled=False)
    assert type(new_meter(SimpleNamespace(metrics_reporter=reporter), OnRunner())) is Meter


class Event:
    """A device event of a stream that finishes when told to."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.at = 0.0
        self.is_done = False

    def record(self) -> None:
        self.at = self.clock[0]

    def query(self) -> bool:
        return self.is_done

    def elapsed_time(self, end: "Event") -> float:
        assert self.is_done
        assert end.is_done, "reading it now would wait for the device"
        return end.at - self.at


def test_device_times_are_read_once_they_are_known_and_in_order():
    clock, events, seen = [0.0], [], []

    def new_event() -> Event:
        events.append(Event(clock))
        return events[-1]

    times = DeviceTimes(seen.append, new_event)
    for milliseconds in (3.0, 5.0):
        with times.taken():
            clock[0] += milliseconds
    times.read()
    assert seen == []
    for event in events[2:]:
        event.is_done = True
    times.read()
    assert seen == []  # the first round is not over
    for event in events:
        event.is_done = True
    times.read()
    assert seen == pytest.approx([0.003, 0.005])


def test_a_device_that_never_answers_is_measured_no_further():
    times = DeviceTimes(lambda _seconds: None, lambda: Event([0.0]))
    for _ in range(DeviceTimes.MOST_PENDING + 3):
        with times.taken():
            pass
    assert len(times._pending) == DeviceTimes.MOST_PENDING


def test_names_are_sglang_s_style_and_stand_once():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.startswith("sglang:dynts_")
        assert metric.name.endswith("_total") == (metric.kind == metrics.COUNTER)


def test_every_panel_of_the_dashboard_asks_for_metrics_that_exist_and_none_is_left_out():
    dashboard = json.loads((PACKAGE / "dashboards" / "dynts.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in dashboard["templating"]["list"]]
    used = {name for text in asked for name in re.findall(r"sglang:\w+", text)}
    assert used <= exposed_names()
    for metric in METRICS:
        assert used & {metric.name + suffix for suffix in SUFFIXES[metric.kind]}, metric.name


def test_panels_select_and_group_by_labels_that_exist():
    dashboard = json.loads((PACKAGE / "dashboards" / "dynts.json").read_text())
    known = {"le", *LABELS, *(label for metric in METRICS for label in metric.labels)}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            selected = re.findall(r"(\w+)=~", target["expr"])
            shown = re.findall(r"{{(\w+)}}", target["legendFormat"])
            asked = {name.strip() for group in grouped for name in group.split(",")}
            assert asked | set(selected) | set(shown) <= known, panel["title"]


def test_the_page_describes_every_metric_in_these_words():
    page = (PACKAGE.parent / "docs" / "operating.md").read_text()
    for metric in METRICS:
        labels = f" `{', '.join(metric.labels)}`" if metric.labels else ""
        assert f"| `{metric.name}`{labels} | {metric.kind} | {metric.help} |" in page


def pool_stats() -> PoolStats:
    return PoolStats(
        full_num_used=40,
        full_token_usage=0.1,
        full_available_size=360,
        full_evictable_size=0,
        full_capacity=400,
    )
