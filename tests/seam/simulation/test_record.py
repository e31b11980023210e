"""What is measured from a made-up course of events."""

from itertools import pairwise

import pytest

from benchmark.simulation.clock import VirtualClock
from benchmark.simulation.job import Workload, plan_requests
from benchmark.simulation.record import MOST_POINTS, Finished, Load, Recorder, Series
from benchmark.simulation.stand_in import Forward


def recorder(workload: Workload) -> tuple[Recorder, VirtualClock]:
    clock = VirtualClock(overlap=False)
    return Recorder(clock, workload, plan_requests(workload, range(8, 100))), clock


def run(recorder: Recorder, clock: VirtualClock, forward: Forward, load: Load) -> None:
    clock.launch(forward.seconds)
    recorder.forward(forward, load)


def arrive(recorder: Recorder, *rids: int) -> None:
    for rid in rids:
        recorder.arrived(str(rid), 0.0)


def test_with_clients_the_rate_is_taken_from_their_first_ends_to_the_last_arrival():
    record, clock = recorder(Workload(4, 10, clients=2))
    arrive(record, 0, 1)
    run(record, clock, Forward(1.0, decoded=100), Load(2, 1000))
    record.finished |= {rid: Finished(1.0, 10, 200, 0, 0) for rid in "01"}
    arrive(record, 2)
    run(record, clock, Forward(1.0, decoded=100), Load(0, 1000))  # opens the window
    run(record, clock, Forward(2.0, decoded=4), Load(1, 300))
    run(record, clock, Forward(2.0, decoded=8), Load(0, 500))
    arrive(record, 3)
    run(record, clock, Forward(9.0, decoded=1), Load(1, 100))  # nobody is to come
    result = record.result()
    assert result["window_s"] == 4.0
    assert result["tokens_per_s"] == (4 + 8) / 4
    assert result["running"] == (2 * 4 + 2 * 8) / 4
    assert result["held_tokens"] == (2 * 300 + 2 * 500) / 4


def test_with_a_rate_the_window_spans_the_arrivals_after_the_first_quarter():
    record, clock = recorder(Workload(8, 10, rate=1.0))
    for arrived in range(8):
        arrive(record, arrived)
        run(record, clock, Forward(1.0, decoded=5), Load(0, 10))
    assert record.result()["window_s"] == 7 - 2
    assert record.result()["tokens_per_s"] == 5


def test_with_neither_the_window_lasts_while_requests_wait():
    record, clock = recorder(Workload(2, 10))
    for queue_len in (2, 1, 1, 0):
        run(record, clock, Forward(1.0, decoded=3), Load(queue_len, 10))
    assert record.result()["window_s"] == 2


def test_the_first_token_ends_the_wait_of_a_request_once():
    record, clock = recorder(Workload(2, 10))
    arrive(record, 0, 1)
    run(record, clock, Forward(1.0, new_tokens=20, answered=("0",)), Load(1, 20))
    run(record, clock, Forward(2.0, new_tokens=20, answered=("0", "1")), Load(0, 40))
    assert record.result()["ttft"] == {"mean": 2.0, "p50": 2.0, "p99": pytest.approx(2.98)}


def test_a_wrong_length_is_counted():
    record, _ = recorder(Workload(2, 10))
    arrive(record, 0, 1)
    record.finished["0"] = Finished(1.0, 10, 200, 50, 1)
    record.finished["1"] = Finished(1.0, 9, 200, 150, 2)
    result = record.result()
    assert result["wrong_lengths"] == 1
    assert result["retractions"] == 3
    assert result["latency"]["mean"] == 1.0
    assert result["prefix_hit_rate"] == 0.5


def test_host_times_are_grouped_by_running_requests():
    record, _ = recorder(Workload(1, 10))
    for seconds in (0.001, 0.002, 0.009):
        record.iteration(65, seconds)
    record.iteration(100, 0.005)
    assert record.result()["host_ms"] == {
        "64": {"median": 2.0, "mean": 4.0, "iterations": 3},
        "96": {"median": 5.0, "mean": 5.0, "iterations": 1},
    }


def test_what_hooks_take_is_told_beside_the_rest():
    record, _ = recorder(Workload(1, 10))
    assert record.result()["hooks_ratio"] is None
    record.iteration(65, 0.010)
    record.iteration(65, 0.012, hook_seconds=0.002)
    assert record.result()["hooks_ratio"] == 1.1


def test_iterations_belong_to_the_turn_that_began_last():
    record, _ = recorder(Workload(1, 10))
    record.iteration(65, 0.5)
    record.begin_turn()
    record.iteration(65, 0.001)
    record.iteration(65, 0.003)
    record.begin_turn()
    record.iteration(65, 0.004)
    record.begin_turn()
    assert record.result()["turns_ms"] == [2.0, 4.0]


def test_a_series_stays_short_and_even():
    series = Series()
    for moment in range(10 * MOST_POINTS):
        if series.is_due():
            series.add(float(moment))
    moments = series.columns(["t"])["t"]
    assert MOST_POINTS / 2 <= len(moments) <= MOST_POINTS
    gaps = {b - a for a, b in pairwise(moments)}
    assert gaps == {16.0}
