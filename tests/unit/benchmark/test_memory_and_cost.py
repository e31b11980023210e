"""What the benchmarks do with their results."""

import json
import sys

import pytest
import torch

from benchmark import capacity, iteration_cost, target_memory
from benchmark.harness.provenance import keep
from benchmark.harness.shapes import roofline_shape
from benchmark.simulation.job import DYNTS, SIDES, STOCK


def test_a_result_takes_the_place_of_one_with_the_same_settings(tmp_path):
    path = tmp_path / "new" / "results.json"
    for shape, value in (("a", 1), ("b", 2), ("a", 3)):
        keep(path, {"shape": shape, "value": value}, ("shape",))
    assert json.loads(path.read_text()) == [{"shape": "b", "value": 2}, {"shape": "a", "value": 3}]


def cells_of(monkeypatch, line: str) -> list[capacity.Cell]:
    monkeypatch.setattr(sys, "argv", ["capacity", *line.split()])
    return capacity.cells(capacity.parse())


def fitting(cell: capacity.Cell) -> tuple[int, ...]:
    return tuple(cell.fitting(side) for side in SIDES)


def test_a_poolful_is_what_fits_on_average(monkeypatch):
    (cell,) = cells_of(monkeypatch, "--shape qwen-7b --pool-tokens 1955000")
    assert fitting(cell) == (1_955_000 // 8392, 534) == (232, 534)
    (cell,) = cells_of(monkeypatch, "--shape qwen-7b --pool-tokens 1955000 --max-running 300")
    assert fitting(cell) == (232, 300)


def test_each_side_has_the_states_that_its_requests_need(monkeypatch):
    """Stock's hold 8,392 tokens of 12,288 bytes each on average; a state has 38,633,472 bytes."""
    line = "--shape qwen3-next-80b"
    (cell,), (alone,) = cells_of(monkeypatch, line), cells_of(monkeypatch, f"{line} --no-prefix-cache")
    tokens, states = cell.pools[STOCK].tokens, cell.pools[STOCK].states
    held = states * 38_633_472 / (tokens * 12_288)
    assert held == pytest.approx(5 * 38_633_472 / (8392 * 12_288), rel=0.01)
    assert fitting(cell) == (states // 5, cell.pools[DYNTS].states // 5)
    assert fitting(alone) == (alone.pools[STOCK].states, alone.pools[DYNTS].states)
    assert fitting(alone)[1] / fitting(alone)[0] > fitting(cell)[1] / fitting(cell)[0]
    assert alone.job_of(STOCK).server.flags == ("--disable-radix-cache",)
    assert alone.job_of(DYNTS).server.num_states == alone.pools[DYNTS].states


def test_a_ratio_of_states_that_is_given_is_each_sides(monkeypatch):
    (cell,) = cells_of(monkeypatch, "--shape qwen3.5-9b --state-ratio 0.9 3")
    bytes_of = roofline_shape("qwen3.5-9b")
    for side, ratio in ((STOCK, 0.9), (DYNTS, 3)):
        pools = cell.pools[side]
        held = pools.states * bytes_of.state_bytes / (pools.tokens * bytes_of.kv_token_bytes)
        assert held == pytest.approx(ratio, rel=0.01)


def test_an_eighth_of_the_pools_is_simulated_where_a_request_stands_for_eight(monkeypatch):
    line = "--shape gpt-oss-20b --max-running 2000"
    (whole,), (part,) = cells_of(monkeypatch, line), cells_of(monkeypatch, f"{line} --stands-for 8")
    assert part.pools[STOCK].tokens == whole.pools[STOCK].tokens // 8
    assert part.pools[STOCK].sliding_tokens == whole.pools[STOCK].sliding_tokens // 8
    assert fitting(part) == tuple(each // 8 for each in fitting(whole))
    server = part.job_of(DYNTS).server
    assert (server.max_running, server.chunked_prefill, server.stands_for) == (250, 1024, 8)


def test_what_is_told_is_of_all_requests_that_the_simulated_ones_stand_for():
    series = {"seconds": [1, 2], "running": [3, 4], "held_tokens": [5, 6], "queue_len": [7, 8]}
    counts = dict.fromkeys(capacity.COUNTS, 2)
    measures = counts | {"ttft": {"mean": 2}, "prefix_hit_rate": 0.5, "series": series}
    assert capacity.of_all(measures, 8) == dict.fromkeys(capacity.COUNTS, 16) | {
        "ttft": {"mean": 2},
        "prefix_hit_rate": 0.5,
        "series": {
            "seconds": [1, 2],
            "running": [24, 32],
            "held_tokens": [40, 48],
            "queue_len": [56, 64],
        },
    }
    assert series["running"] == [3, 4]


def test_every_combination_is_a_cell(monkeypatch):
    line = "--shape qwen-7b llama-8b --output-len 100 200 --load unlimited 2 --end eos"
    cells = cells_of(monkeypatch, line)
    assert len(cells) == 8
    jobs = [cell.job for cell in cells]
    assert {job.server.windows.keep_ratio for job in jobs} == {0.4, 0.3}
    assert {job.workload.rate for job in jobs} == {None, 2.0}
    assert {job.workload.max_new_tokens for job in jobs} == {200, 400}


def test_the_sweeps_share_their_usual_cell(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["iteration_cost"])
    cells = iteration_cost.cells(iteration_cost.parse())
    assert len(cells) == len(set(cells)) == 5 + 2 + 2


def test_timing_begins_when_every_request_has_reached_its_budget():
    cell = iteration_cost.Cell(running=10, budget=1000, queue_len=0)
    job = iteration_cost.make_job(cell, "dynts", iterations=100)
    assert job.skip_iterations == 1000 + 3 * 360
    assert job.max_iterations == job.skip_iterations + 100
    assert job.workload.output_len >= job.max_iterations


def test_a_naive_target_too_large_is_not_run(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["target_memory", "--num-layers", "4"])
    args = target_memory.parse()
    result = target_memory.run_point(args, "naive", 8192)
    assert result["estimated_gib"] == 4 * (4 + 3) * 4 * 8192**2 / 2**30 == 7
    assert result["not_run"] == "would need 7.0 GiB, the limit is 4 GiB"
    assert "added_mib" not in result


def test_the_naive_way_computes_the_same_target(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["target_memory", "--answer-len", "40"])
    point = {**vars(target_memory.parse()), "seq_len": 200}
    model = target_memory.new_model(point)
    targets = [target_memory.compute(model, {**point, "target": name}) for name in ("answer", "naive")]
    torch.testing.assert_close(*targets)
