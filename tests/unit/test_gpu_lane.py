"""The GPU lane without a GPU and without a server: what it would run, read, predict, keep and draw."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from benchmark import predict
from benchmark.gpu import (
    capacity_run,
    check,
    fixed_batch,
    kernels,
    lane,
    plots,
    report,
    servers,
    serving,
    shared_prefix,
    untriggered,
)
from benchmark.gpu.models import THINK_END, THINK_START, TOKENIZER_FOLDER, write_model
from benchmark.gpu.servers import Load, RunningServer, Setup, Watch
from benchmark.gpu.serving import RandomLoad, Served, SharedPrefixLoad
from benchmark.gpu.shapes import CONFIGS, WINDOWS, gpu_named, read_shape, shape_of
from sgl_dynts.checkpoint import find_predictor, load_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.roofline import GPUS, H100, H200, SHAPES, Gpu, ModelShape

SETUP = Setup("tiny", WINDOWS["tiny"], 4000, (), 300, on_gpu=False)
ON_H200 = Setup("qwen-7b", WINDOWS["qwen-7b"], None, ("--watchdog-timeout", "60"), 300, on_gpu=True)
SERVED = Served(4, 2.0, 600, 300.0, 12.0, 50.0, 0.25)
WATCH = Watch([Load(0.25, 100, 4), Load(0.5, 380, 3)])
BOTH: dict[str, tuple[Served, Watch]] = {"stock": (SERVED, WATCH), "dynts": (SERVED, WATCH)}

FIELDS = {
    *("bench", "shape", "batch", "output_len", "stock", "dynts", "ratio", "unit", "device", "commit"),
    *("command", "versions", "prediction"),
}

SLOW = Gpu("slow", 1000, 10_000, 2000, bandwidth_efficiency=0.5, flops_efficiency=0.1, reserved_bytes=0)
"""500 bytes/s and 1000 FLOP/s; 1760 bytes for weights and KV."""
SMALL = ModelShape("small", 1, 1, 1, 2, 4, 10, 200)
"""8 bytes per KV token, 320 bytes of weights read, 100 of predictor, 8 FLOPs per attended pair."""
OUTLOOK = predict.Outlook(SLOW, SMALL, DynTSConfig(8, 2, 0.5), question_len=2, output_len=10)
"""Grows from 2 to 8 in 6 steps, then saws between 5 and 8: (6 * 5 + 4 * 6.5) / 10 = 5.6 on average."""


@pytest.mark.parametrize(
    ("name", "parameters"), [("qwen-7b", 7_615_616_512), ("llama-8b", 8_030_261_248)]
)
def test_a_served_shape_is_the_rooflines(name, parameters):
    shape = shape_of(name, CONFIGS[name])
    assert shape.num_parameters == parameters == pytest.approx(SHAPES[name].num_parameters, rel=1e-4)
    assert replace(shape, num_parameters=0) == replace(SHAPES[name], num_parameters=0)


def test_the_tiny_shape_counted_by_hand():
    layer = (2 * 64 * 64 + 2 * 64 * 32) + 3 * 64 * 96 + 2 * 64
    assert shape_of("tiny", CONFIGS["tiny"]).num_parameters == 2 * layer + 64 + 2 * 256 * 64 == 94_528


def test_another_kind_of_model_is_refused_by_name():
    with pytest.raises(ValueError, match="model_type 'mixtral' of big"):
        shape_of("big", {"model_type": "mixtral"})


def test_devices_are_known_by_their_whole_name():
    assert gpu_named("NVIDIA H200") is H200
    assert gpu_named("NVIDIA H100 80GB HBM3") is H100
    assert gpu_named("NVIDIA H100 PCIe") is None


def test_a_written_model(tmp_path):
    folder = write_model("tiny", tmp_path / "model")
    assert json.loads((folder / "config.json").read_text()) == CONFIGS["tiny"]
    assert read_shape(folder).num_parameters == 94_528
    source = find_predictor(folder)
    assert source.header.config == DynTSConfig(96, 16, 0.4)
    assert load_predictor(source).inner_sizes == (128, 32)
    tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER_FOLDER)
    assert tokenizer.vocab_size == 256
    assert tokenizer.encode(THINK_START, add_special_tokens=False) == [10, 8, 6, 4]
    assert tokenizer.encode(THINK_END, add_special_tokens=False) == [11, 9, 7, 5]
    assert tokenizer.decode([20, 21]) == "w20 w21"


def test_both_servers_differ_in_dynts_alone():
    stock, dynts = (servers.command_of(ON_H200, side, Path("model"), 3000) for side in ("stock", "dynts"))
    at = dynts.index("--attention-backend")
    assert stock[:at] == dynts[:at]
    assert stock[at:] == ["--watchdog-timeout", "60"]
    assert stock[(i := stock.index("--load-format")) : i + 2] == ["--load-format", "dummy"]
    assert dynts[at:] == [
        *("--attention-backend", "dynts"),
        *("--dynts-think-start", THINK_START, "--dynts-think-end", THINK_END),
        *("--dynts-budget", "5000", "--dynts-local-window", "2000", "--dynts-keep-ratio", "0.4"),
        *("--watchdog-timeout", "60"),
    ]


def test_the_stock_side_may_be_given_the_same_kernels():
    setup = replace(ON_H200, stock_attention="flashinfer")
    assert servers.side_flags(setup, "stock") == ["--attention-backend", "flashinfer"]


def test_only_the_dynts_side_loads_the_plug_in():
    names = [servers.environment_of(SETUP, side)["SGLANG_PLUGINS"] for side in ("stock", "dynts")]
    assert ["dynts" in name.split(",") for name in names] == [False, True]


def test_a_large_shape_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = Namespace(
        shape="llama-8b", budget=None, local_window=None, keep_ratio=None, pool_tokens=None, flags=""
    )
    with pytest.raises(SystemExit, match="--shape llama-8b needs a GPU"):
        servers.setup_of(args)


def test_the_load_is_that_of_all_ranks():
    ranks = [{"num_used_tokens": 5, "num_running_reqs": 1}, {"num_used_tokens": 7, "num_running_reqs": 2}]
    assert servers.load_of(ranks, 1.5) == Load(1.5, 12, 3)
    assert (WATCH.peak_tokens, WATCH.peak_running) == (380, 4)
    assert Watch().peak_tokens == 0


def test_a_serving_result_is_its_last_line():
    values = {
        "completed": 4,
        "duration": 2.0,
        "total_output_tokens": 600,
        "output_throughput": 300.0,
        "median_tpot_ms": 12.0,
        "median_ttft_ms": 50.0,
        "cache_report": {"cache_hit_rate_pct": 25.0},
    }
    lines = [json.dumps(values | {"completed": 1}), json.dumps(values)]
    assert serving.parse("\n".join(lines) + "\n") == SERVED


def test_an_empty_serving_result_is_an_error():
    with pytest.raises(serving.ServingError):
        serving.parse("\n")


def test_the_load_generators_flags():
    server = RunningServer("stock", SETUP, Path("model"), 3000)
    command = serving.command_of(server, RandomLoad(20, 150, 4, 2, rate=0.5), Path("out"))
    text = " ".join(command)
    assert "--random-input-len 20 --random-output-len 150 --num-prompts 4 --seed 0" in text
    assert text.endswith("--max-concurrency 2 --request-rate 0.5")
    assert "--request-rate" not in serving.command_of(server, RandomLoad(20, 150, 4), Path("out"))
    shared = SharedPrefixLoad(2, 3, 32, 8, 80, max_concurrency=2)
    text = " ".join(serving.command_of(server, shared, Path("out")))
    assert "--gsp-num-groups 2 --gsp-prompts-per-group 3 --gsp-system-prompt-len 32" in text
    assert "--num-prompts 6 --max-concurrency 2" in text


def test_mean_and_peak_lengths_by_hand():
    assert OUTLOOK.mean_len("stock") == 7
    assert OUTLOOK.mean_len("dynts") == pytest.approx(5.6)
    assert (OUTLOOK.peak_len("stock"), OUTLOOK.peak_len("dynts")) == (12, 8)


def test_bytes_and_seconds_of_a_step_by_hand():
    assert OUTLOOK.step_bytes("stock", 2) == 320 + 2 * 7 * 8
    assert OUTLOOK.step_bytes("dynts", 2) == pytest.approx(320 + 100 + 2 * 5.6 * 8)
    assert OUTLOOK.step_seconds("stock", 2) == pytest.approx(432 / 500)
    assert OUTLOOK.step_seconds("dynts", 2) == pytest.approx(509.6 / 500)
    assert OUTLOOK.speedup(2) == pytest.approx(432 / 509.6)


def test_what_fits_and_how_fast_it_is_by_hand():
    assert (OUTLOOK.fitting("stock"), OUTLOOK.fitting("dynts")) == (170 // 7, int(170 / 5.6)) == (24, 30)
    stock = 24 / ((24 * 320 + 8 * 24 * 7) / 1000)  # bound by arithmetic
    dynts = 30 / ((30 * 420 + 8 * 30 * 5.6) / 1000)
    assert OUTLOOK.speedup_at_capacity() == pytest.approx(dynts / stock)
    assert replace(OUTLOOK, pool_tokens=14).fitting("stock") == 2


def test_the_command_predicts_from_a_models_own_config(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIGS["llama-8b"]))
    line = f"predict --model {path} --batch 32 --output-len 16384"
    monkeypatch.setattr("sys.argv", line.split())
    predict.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["shape"], result["gpu"], result["batch"]) == ("mine", "H200", 32)
    read = 2 * (8_030_261_248 - 128_256 * 4096)
    assert result["step_bytes"]["stock"] == read + 32 * (200 + 8192) * 131_072
    assert result["break_even_tokens"] == pytest.approx(768, abs=1)


def test_a_kept_cell_has_exactly_its_fields():
    cell = report.Case("fixed_batch", "tiny", 4, 150).cell("ms", {"stock": 10.0, "dynts": 12.0})
    result = report.result_of(cell, "gpu.fixed_batch")
    assert result.keys() == FIELDS
    assert (result["stock"], result["dynts"], result["ratio"]) == (10.0, 12.0, 1.2)
    assert result["command"].startswith("python -m benchmark.gpu.fixed_batch")
    assert result["versions"].keys() > {"sglang", "torch"}


def test_a_side_without_a_number_has_no_ratio():
    assert report.ratio_of(None, 2.0) is None
    assert report.ratio_of(2.0, None) is None
    assert report.ratio_of(2.0, 0.0) == 0


def test_cells_are_printed_and_kept_in_place_of_older_ones(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    case = report.Case("copy", "tiny", 1, 8)
    for value in (1.0, 2.0):
        report.report(out, [case.cell("GB/s", {"stock": value}, {"stock": 4.0})], "gpu.kernels")
    (kept,) = json.loads(out.read_text())
    assert (kept["stock"], kept["dynts"], kept["prediction"]) == (2.0, None, {"stock": 4.0})
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == kept
    assert printed[-2].split() == ["predicted", "4.000", "-", "-"]


def test_a_fixed_batch_gives_three_numbers():
    sides = {"stock": (SERVED, WATCH), "dynts": (replace(SERVED, tpot_ms=9.0), Watch())}
    cells = fixed_batch.cells_of(SETUP, RandomLoad(20, 150, 4), sides)
    assert [(cell.unit, cell.stock, cell.dynts) for cell in cells] == [
        ("ms per output token", 12.0, 9.0),
        ("output tokens/s", 300.0, 300.0),
        ("peak KV tokens", 380, 0),
    ]
    assert {(cell.batch, cell.output_len, cell.prediction) for cell in cells} == {(4, 150, None)}


def test_a_known_gpu_brings_predictions(monkeypatch):
    monkeypatch.setattr(report, "device_name", lambda: "NVIDIA H200")
    times, _, peak = fixed_batch.cells_of(ON_H200, RandomLoad(200, 16384, 32), BOTH)
    assert peak.prediction == {"stock": 32 * 16584, "dynts": 32 * 5000}
    assert times.prediction is not None
    assert times.prediction["stock"] / times.prediction["dynts"] == pytest.approx(1.41, abs=0.01)


def test_a_capacity_run_sends_more_than_fits():
    assert capacity_run.num_prompts(OUTLOOK.config, 558, 2, 10) == 125
    cells = capacity_run.cells_of(SETUP, RandomLoad(20, 200, 11), BOTH)
    assert [cell.stock for cell in cells] == [300.0, 4, 380, 2.0, 50.0]


def test_the_stock_server_decides_how_many_requests():
    args = Namespace(output_len=[10], question_len=2, num_prompts=None)
    measurement = capacity_run.Measurement(args, OUTLOOK.config)
    assert measurement.load_of(558, 10) == RandomLoad(2, 10, 125)
    fixed = capacity_run.Measurement(replace_in(args, num_prompts=7), OUTLOOK.config)
    assert fixed.load_of(558, 10) == RandomLoad(2, 10, 7)


def replace_in(args: Namespace, **values) -> Namespace:
    return Namespace(**(vars(args) | values))


def test_the_best_hit_rate_by_hand():
    load = SharedPrefixLoad(2, 4, 100, 25, 80, max_concurrency=2)
    assert shared_prefix.best_hit_rate(load) == pytest.approx(3 * 100 / (4 * 125))
    cells = shared_prefix.cells_of(SETUP, load, BOTH)
    assert (cells[0].stock, cells[0].dynts, cells[0].batch) == (0.25, 0.25, 2)


def test_untriggered_lengths_stay_below_the_budget():
    untriggered.check_length(SETUP, 20, 75)
    with pytest.raises(SystemExit, match="--output-len 76 reaches the budget; at most 75 does not"):
        untriggered.check_length(SETUP, 20, 76)


def test_identical_requests_are_counted():
    assert untriggered.num_identical([[1, 2], [3]], [[1, 2], [4]]) == 1
    (prompt,) = untriggered.prompts_of("tiny", 1, 30)
    assert len(prompt) == 30
    assert min(prompt) >= 16


def test_a_round_has_the_proportions_of_the_paper():
    plan = kernels.compaction_round(WINDOWS["qwen-7b"], 2, 5000)
    cut = plan.cuts[0]
    assert (cut.window_len, cut.local_window) == (5000, 2000)
    assert (cut.num_candidates, cut.num_kept) == (3000 - 32, 1200 - 32)
    assert plan.rows == (1, 2)


def test_kernels_are_timed_on_this_machine(tmp_path, monkeypatch):
    line = f"kernels --shape tiny --due 2 --batch 3 --copy-mib 1 --repeats 1 --out {tmp_path}/gpu.json"
    monkeypatch.setattr("sys.argv", line.split())
    kernels.main()
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert [(cell["bench"], cell["batch"]) for cell in kept] == [
        ("copy", 1),
        ("compaction", 2),
        ("scoring", 3),
    ]
    assert kept[0]["stock"] > 0
    assert kept[1]["dynts"] > 0


@pytest.mark.parametrize("gpu", sorted(GPUS))
def test_the_plan_ends_in_time(gpu):
    every = lane.gpu_steps("qwen-7b", GPUS[gpu], Path("out"))
    assert all(step.limit < 600 for step in every)
    steps = lane.chosen(every, None)
    assert {step.name for step in every} - {step.name for step in steps} == {"serving_tests"}
    assert [step.name for step in lane.chosen(every, ["serving_tests"])] == ["serving_tests"]
    assert all(step.estimate is None or step.estimate < step.limit for step in steps)
    assert sum(step.limit for step in steps) < 25 * 60


def test_the_tiny_plan_has_the_same_steps():
    steps = lane.gpu_steps("qwen-7b", H200, Path("out"))
    tiny = lane.tiny_steps(Path("out"))
    assert [step.name for step in tiny] == [step.name for step in steps]
    assert all(step.limit < 600 for step in tiny)


@pytest.mark.parametrize(
    "steps", [lane.gpu_steps("llama-8b", H200, Path("o")), lane.tiny_steps(Path("o"))]
)
def test_every_benchs_parser_takes_its_step(steps, monkeypatch):
    for step in steps:
        module = {
            "untriggered": untriggered,
            "fixed_batch": fixed_batch,
            "shared_prefix": shared_prefix,
            "capacity_run": capacity_run,
            "kernels": kernels,
        }.get(step.name)
        if module is not None:
            monkeypatch.setattr("sys.argv", list(step.words))
            assert module.parse().out == Path("o")


def test_an_estimate_by_hand():
    """Two servers' starts aside: both sides, every token once per step."""
    forecast = lane.Forecast(H200, SHAPES["qwen-7b"])
    stock = 4096 * (14.14e9 + 32 * (200 + 2048) * 57_344) / (4.8e12 * 0.82)
    dynts = 4096 * (14.14e9 + 77.1e6 + 32 * (200 + 2048) * 57_344) / (4.8e12 * 0.82)
    assert forecast.seconds(4096, 32) == pytest.approx(stock + dynts, rel=1e-3)
    assert forecast.seconds(4096, 32, waves=3) == pytest.approx(3 * (stock + dynts), rel=1e-3)


def test_a_failed_step_does_not_keep_the_others_from_running(capfd):
    steps = [
        lane.Step("bad", ("json.tool", "--no-such-flag"), 60),
        lane.Step("good", ("json.tool", "--help"), 60),
    ]
    assert lane.run_all(steps) == ["bad"]
    assert "== good: status 0" in capfd.readouterr().out


def test_a_step_that_does_not_end_is_ended():
    endless = lane.Step("endless", ("http.server", "--bind", "127.0.0.1", "0"), 1)
    assert lane.run(endless) == lane.TIMED_OUT


def test_a_dry_run_runs_nothing(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lane", "--dry-run", "--step", "capacity_run"])
    monkeypatch.setattr(lane, "run", lambda step: pytest.fail(f"ran {step}"))
    lane.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["capacity_run", "470"]
    assert "--num-prompts 18" in lines[1]


def test_missing_entry_points_are_named(monkeypatch):
    monkeypatch.setattr(check, "entry_points", lambda group: [])
    assert check.missing_entry_points() == ["dynts", "dynts_host_cpu"]


def test_the_charts_are_drawn(tmp_path):
    cells = [
        report.Case("fixed_batch", "tiny", batch, length).cell("tokens/s", {"stock": 1.0, "dynts": 2.0})
        for batch in (1, 4)
        for length in (100, 200)
    ]
    plots.draw_throughput(tmp_path / "throughput.png", cells, "no device")
    plots.draw_kv(tmp_path / "kv.png", {"stock": WATCH, "dynts": WATCH}, "title")
    for name in ("throughput.png", "kv.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
