"""What the benchmarks do with their results."""

import json
import sys

import torch

from benchmark import capacity, iteration_cost, target_memory
from benchmark.harness.provenance import keep
from sgl_dynts.config import DynTSConfig


def test_a_result_takes_the_place_of_one_with_the_same_settings(tmp_path):
    path = tmp_path / "new" / "results.json"
    for shape, value in (("a", 1), ("b", 2), ("a", 3)):
        keep(path, {"shape": shape, "value": value}, ("shape",))
    assert json.loads(path.read_text()) == [{"shape": "b", "value": 2}, {"shape": "a", "value": 3}]


def test_a_poolful_is_what_fits_on_average():
    windows = DynTSConfig(5000, 2000, 0.4)
    assert capacity.poolful(windows, 1_955_000, 200, 16384, most=1200) == 534
    assert capacity.poolful(windows, 1_955_000, 200, 16384, most=100) == 100


def test_every_combination_is_a_cell(monkeypatch):
    line = "capacity --shape qwen-7b llama-8b --output-len 100 200 --load unlimited 2 --end eos"
    monkeypatch.setattr(sys, "argv", line.split())
    cells = capacity.cells(capacity.parse())
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
