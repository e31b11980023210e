"""What a client and the log are told."""

from types import SimpleNamespace

import pytest
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats

from sglang_dynts.entry.governed_request import GovernedRequest
from sglang_dynts.telling import reporting
from sglang_dynts.telling.reporting import (
    DynTSOutputStreamer,
    add_totals,
    choose_streamer,
    report_one_object,
)
from tests.seam.engine import Engine


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_a_report_keeps_the_numbers_of_earlier_lives():
    report = GovernedRequest(window=None, question_len=4, detailed=True)
    report.compacted(seq_len=20, window_len=20, num_dropped=7, early=False)
    report.close(window_len=13)
    report.restart()
    report.compacted(seq_len=34, window_len=34, num_dropped=21, early=True)
    assert report.as_dict(13) == {
        "enabled": False,
        "policy": "full",
        "question_len": 4,
        "compactions": 2,
        "early_compactions": 1,
        "resumptions": 0,
        "compacted_at": [34],
        "dropped_then": [21],
        "dropped_tokens": 28,
        "window_len": 13,
        "peak_window_len": 34,
    }


def test_a_released_request_reports_the_length_it_ended_with():
    report = GovernedRequest(window=None, question_len=4)
    report.close(window_len=9)
    assert (report.as_dict(0)["window_len"], report.as_dict(0)["peak_window_len"]) == (9, 9)


def test_meta_info_gets_the_newest_numbers_and_sglang_the_rest():
    meta, info = {}, {"dynts": [{"compactions": 0}, {"compactions": 3}], "other": ["a", "b"]}
    changed = report_one_object("manager", meta, "state", info, 1, "reason")
    assert meta == {"dynts": {"compactions": 3}}
    assert changed == (("manager", meta, "state", {"other": ["a", "b"]}, 1, "reason"), {})
    assert set(info) == {"dynts", "other"}


def test_a_client_that_is_sent_nothing_yet_costs_no_report(engine, monkeypatch):
    monkeypatch.setattr(reporting, "report_now", lambda _governor, req: {"of": req.rid})
    streamer = DynTSOutputStreamer.__new__(DynTSOutputStreamer)
    streamer.tree_cache = engine.cache
    reqs = [
        SimpleNamespace(rid="streams", stream=True, finished=lambda: False),
        SimpleNamespace(rid="waits", stream=False, finished=lambda: False),
        SimpleNamespace(rid="is done", stream=False, finished=lambda: True),
    ]
    info = streamer.build_additional_customized_info(reqs)
    assert info == {"dynts": [{"of": "streams"}, None, {"of": "is done"}]}
    meta = {}
    assert report_one_object("manager", meta, "state", info, 1, None) == (
        ("manager", meta, "state", {}, 1, None),
        {},
    )
    assert meta == {}


def test_meta_info_of_a_server_without_dynts_is_left_alone():
    meta = {}
    assert report_one_object("manager", meta, "state", {"other": ["a"]}, 0, None) is None
    assert meta == {}


def test_only_a_server_with_dynts_gets_our_streamer(serve):
    serve("--attention-backend", "torch_native")
    assert choose_streamer(SchedulerOutputStreamer, None) is SchedulerOutputStreamer
    serve("--attention-backend", "dynts")
    assert choose_streamer(SchedulerOutputStreamer, None) is DynTSOutputStreamer


def test_the_decode_log_line_counts_compactions_and_dropped_tokens(engine):
    engine.governor.tally.compacted(20, 7, early=False)
    engine.governor.tally.compacted(18, 5, early=True)
    plain = stats()
    ours = add_totals(plain, SimpleNamespace(tree_cache=engine.cache))
    assert ours is not None
    parts = ours.get_decode_usage_msg_parts()
    assert parts[:-3] == plain.get_decode_usage_msg_parts()
    assert parts[-3:] == ["#compactions: 2", "#early: 1", "#dropped-token: 12"]


def test_another_caches_statistics_are_left_alone():
    assert add_totals(stats(), SimpleNamespace(tree_cache=object())) is None


def stats() -> PoolStats:
    return PoolStats(full_num_used=1, full_token_usage=0.1, full_available_size=9, full_evictable_size=0)
