"""The GPU benches without a GPU and without a server: what they run, read, predict, keep and draw."""

import inspect
import json
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import flashinfer
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoTokenizer

from benchmark import predict
from benchmark.gpu import __main__ as runner
from benchmark.gpu import (
    attention,
    check,
    crowds,
    fixed_batch,
    install,
    kernels,
    plots,
    report,
    servers,
    serving,
    shared_prefix,
    targets,
    timing,
    untriggered,
    whole_pool,
)
from benchmark.gpu.models import THINK_END, THINK_START, TOKENIZER_FOLDER, write_model
from benchmark.gpu.servers import Load, RunningServer, Setup, Watch
from benchmark.gpu.serving import RandomLoad, Served, SharedPrefixLoad
from benchmark.harness import provenance
from benchmark.harness.shapes import CONFIGS, WINDOWS, gpu_named, read_shape, roofline_shape, shape_of
from sgl_dynts.checkpoint import find_predictor, load_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.harness.client import Client
from sgl_dynts.roofline import H100, H200, SHAPES, Gpu, ModelShape

SETUP = Setup("tiny", WINDOWS["tiny"], 4000, (), 300, on_gpu=False)
ON_H200 = Setup("qwen-7b", WINDOWS["qwen-7b"], None, ("--watchdog-timeout", "60"), 300, on_gpu=True)
SERVED = Served(4, 2.0, 600, 300.0, 12.0, 50.0, 0.25)
WATCH = Watch([Load(0.25, 100, 4), Load(0.5, 380, 3)])
BOTH: dict[str, tuple[Served, Watch]] = {"stock": (SERVED, WATCH), "dynts": (SERVED, WATCH)}

FIELDS = {
    *("bench", "shape", "batch", "output_len", "stock", "dynts", "ratio", "unit", "device", "commit"),
    *("command", "versions", "prediction", "target", "met"),
}

SLOW = Gpu("slow", 1000, 10_000, 2000, 0.5, 0.1, reserved_bytes=0, step_seconds=0, request_seconds=0)
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
    assert source.header.windows == DynTSConfig(96, 16, 0.4)
    assert load_predictor(source).inner_sizes == (128, 32)
    tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER_FOLDER)
    assert tokenizer.vocab_size == 256
    assert tokenizer.encode(THINK_START, add_special_tokens=False) == [10, 8, 6, 4]
    assert tokenizer.encode(THINK_END, add_special_tokens=False) == [11, 9, 7, 5]
    assert tokenizer.decode([20, 21]) == "w20 w21"


def test_both_servers_differ_in_dynts_alone():
    stock, dynts = (servers.arguments_of(ON_H200, side, Path("model")) for side in ("stock", "dynts"))
    at = dynts.index("--attention-backend")
    assert stock[:at] == dynts[:at]
    assert "--incremental-streaming-output" in stock[:at]
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
    server = RunningServer("stock", SETUP, Path("model"), Client("http://127.0.0.1:3000"))
    command = serving.arguments_of(server, RandomLoad(20, 150, 4, 2, rate=0.5), Path("out"))
    text = " ".join(command)
    assert "--random-input-len 20 --random-output-len 150 --num-prompts 4 --seed 0" in text
    assert text.endswith("--max-concurrency 2 --request-rate 0.5")
    assert "--request-rate" not in serving.arguments_of(server, RandomLoad(20, 150, 4), Path("out"))
    shared = SharedPrefixLoad(2, 3, 32, 8, 80, max_concurrency=2)
    text = " ".join(serving.arguments_of(server, shared, Path("out")))
    assert "--gsp-num-groups 2 --gsp-prompts-per-group 3 --gsp-system-prompt-len 32" in text
    assert "--num-prompts 6 --max-concurrency 2" in text


def test_the_load_generator_runs_offline_and_its_failure_ends_with_what_it_printed(monkeypatch):
    seen = []

    def cli_main():
        seen.append((sys.argv[1:], constants.is_offline_mode()))
        sys.stdout.write("first line\nlast line\n")
        if "--fail" in sys.argv:
            sys.exit(3)

    monkeypatch.setattr("sglang.benchmark.serving.cli_main", cli_main)
    before = list(sys.argv)
    serving.generate(["--seed", "0"])
    with pytest.raises(serving.ServingError, match=r"SystemExit\(3\):\nfirst line\nlast line"):
        serving.generate(["--fail"])
    assert seen == [(["--seed", "0"], True), (["--fail"], True)]
    assert sys.argv == before
    assert not constants.is_offline_mode()


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
    stock = 24 / (24 * 320 / 1000 + 8 * 24 * 7 / 500)  # weights bound by arithmetic, attention by memory
    dynts = 30 / (30 * 420 / 1000 + 8 * 30 * 5.6 / 500)
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
    result = report.result_of(cell, Namespace(commit="abc1234"), "gpu.fixed_batch")
    assert result.keys() == FIELDS
    assert (result["stock"], result["dynts"], result["ratio"]) == (10.0, 12.0, 1.2)
    assert (result["commit"], result["target"], result["met"]) == ("abc1234", None, None)
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
        report.report(
            Namespace(out=out, commit="abc1234"),
            [case.cell("GB/s", {"stock": value}, {"stock": 4.0})],
            "gpu.kernels",
        )
    (kept,) = json.loads(out.read_text())
    assert (kept["stock"], kept["dynts"], kept["prediction"]) == (2.0, None, {"stock": 4.0})
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == kept
    assert printed[-2].split() == ["predicted", "4.000", "-", "-"]


def test_a_fixed_batch_gives_three_numbers_and_two_shares(monkeypatch):
    monkeypatch.setattr(kernels, "compaction_milliseconds", lambda *_: 0.5)
    monkeypatch.setattr(kernels, "scoring_milliseconds", lambda *_: 0.09)
    sides = {"stock": (SERVED, WATCH), "dynts": (replace(SERVED, tpot_ms=9.0), Watch())}
    cells = fixed_batch.cells_of(SETUP, RandomLoad(20, 150, 4), sides)
    assert [(cell.unit, cell.stock, cell.dynts) for cell in cells] == [
        ("ms per output token", 12.0, 9.0),
        ("output tokens/s", 300.0, 300.0),
        ("peak KV tokens", 380, 0),
        ("compaction, % of decode time", None, pytest.approx(100 * (4 * 2 / 150) * 0.5 / 9)),
        ("scoring, % of decode time", None, 1.0),
    ]
    assert {(cell.batch, cell.output_len, cell.prediction) for cell in cells} == {(4, 150, None)}


@pytest.mark.parametrize(("output_len", "compactions"), [(5, 0), (6, 1), (8, 1), (9, 2), (12, 3)])
def test_compactions_are_counted_from_the_budget_on(output_len, compactions):
    """Budget 8 and a question of 2: due after 6 tokens, then every 3."""
    load = RandomLoad(2, output_len, 4)
    assert fixed_batch.rounds_per_step(OUTLOOK.config, load) == 4 * compactions / output_len


def test_a_known_gpu_brings_predictions(monkeypatch):
    monkeypatch.setattr(report, "device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(kernels, "compaction_milliseconds", lambda *_: 0.5)
    monkeypatch.setattr(kernels, "scoring_milliseconds", lambda *_: 0.09)
    times, _, peak, compaction, scoring = fixed_batch.cells_of(ON_H200, RandomLoad(200, 16384, 32), BOTH)
    assert peak.prediction == {"stock": 32 * 16584, "dynts": 32 * 5000}
    assert times.prediction is not None
    assert times.prediction["stock"] / times.prediction["dynts"] == pytest.approx(1.33, abs=0.01)
    assert compaction.prediction is not None
    assert scoring.prediction is not None
    assert compaction.prediction["dynts"] == pytest.approx(0.0124, abs=0.0005)
    assert scoring.prediction["dynts"] == pytest.approx(0.29, abs=0.02)


def test_the_best_hit_rate_by_hand():
    load = SharedPrefixLoad(2, 4, 100, 25, 80, max_concurrency=2)
    assert shared_prefix.best_hit_rate(load) == pytest.approx(3 * 100 / (4 * 125))
    cells = shared_prefix.cells_of(SETUP, load, BOTH)
    assert (cells[0].stock, cells[0].dynts, cells[0].batch) == (0.25, 0.25, 2)


def test_untriggered_lengths_stay_below_the_budget():
    untriggered.check_length(SETUP, 20, 75)
    with pytest.raises(SystemExit, match="--output-len 76 reaches the budget; at most 75 does not"):
        untriggered.check_length(SETUP, 20, 76)


def test_requests_with_tokens_of_stocks_are_counted_on_both_sides():
    """Stock's second request differs from its own first time; DynTS's third differs from both."""
    stock = untriggered.Measured({32: [[1], [2], [3]]}, {32: [[1], [5], [3]]}, [])
    dynts = untriggered.Measured({32: [[1], [5], [3]]}, {32: [[1], [2], [4]]}, [])
    cell = untriggered.identity_cell("tiny", 32, 1, {"stock": stock, "dynts": dynts})
    assert (cell.batch, cell.stock, cell.dynts) == (32, 2, 2)
    assert cell.prediction == {"stock": 3, "dynts": 3}
    untriggered.refuse_differences([cell])
    with pytest.raises(untriggered.DifferenceError, match="other tokens than stock at batch 32"):
        untriggered.refuse_differences([replace(cell, dynts=1)])


def test_questions_hold_no_special_tokens():
    (prompt,) = untriggered.prompts_of("tiny", 1, 30, seed=0)
    assert len(prompt) == 30
    assert min(prompt) >= 16
    assert untriggered.prompts_of("tiny", 1, 30, seed=1) != [prompt]


def test_a_round_has_the_proportions_of_the_paper():
    plan = kernels.compaction_round(WINDOWS["qwen-7b"], 2, 5000)
    cut = plan.cuts[0]
    assert (cut.window_len, cut.local_window) == (5000, 2000)
    assert (cut.num_candidates, cut.num_kept) == (3000 - 32, 1200 - 32)
    assert plan.rows == (1, 2)


def test_kernels_are_timed_on_this_machine(tmp_path, monkeypatch):
    line = "kernels --shape tiny --due 2 --head-due 2 --window 96 --batch 3 --copy-mib 1 --repeats 1"
    monkeypatch.setattr("sys.argv", [*line.split(), "--out", str(tmp_path / "gpu.json")])
    kernels.main()
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert [(cell["bench"], cell["batch"]) for cell in kept] == [
        ("copy", 1),
        ("compaction", 2),
        ("choice per head", 2),
        ("moves per head", 2),
        ("moves per head", 2),
        ("scoring", 3),
    ]
    assert kept[0]["stock"] > 0
    assert kept[1]["dynts"] > 0


def test_slots_of_stock_lie_a_batch_apart():
    slots = attention.slots_after(WINDOWS["tiny"], batch=3, pool_tokens=600, rounds=0)
    assert slots.shape == (3, 95)
    assert slots[0, :32].tolist() == list(range(1, 33))  # the question's
    assert slots[:, 32:34].tolist() == [[97, 100], [98, 101], [99, 102]]


def test_slots_after_compactions_are_scattered_and_nobody_elses():
    slots = attention.slots_after(WINDOWS["tiny"], batch=3, pool_tokens=600, rounds=4)
    assert slots.shape == (3, 95)
    assert slots.unique().numel() == slots.numel()
    assert slots[0, :32].tolist() == list(range(1, 33))
    steps = slots[0, 32:].diff()
    assert (steps != 3).sum() > 5
    assert slots.max() <= 600


def test_attention_in_torch_reads_the_slots_it_is_given():
    shape = roofline_shape("tiny")
    slots = torch.tensor([[3, 1], [0, 2]], dtype=torch.int32)
    keys, values = (torch.randn(4, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    queries = torch.randn(2, shape.num_heads, shape.head_dim)
    found = attention.torch_decode(slots)(queries, keys, values)
    for request, head in ((0, 0), (0, 1), (1, 3)):
        own = slots[request].long()
        logits = keys[own, head // 2] @ queries[request, head] / shape.head_dim**0.5
        wanted = logits.softmax(0) @ values[own, head // 2]
        torch.testing.assert_close(found[request, head], wanted)


def test_flashinfer_takes_what_it_is_called_with():
    """Without a GPU no wrapper can be made, but the names of its arguments can be looked up."""
    wrapper = inspect.unwrap(flashinfer.BatchDecodeWithPagedKVCacheWrapper.__init__)
    names = {"use_cuda_graph", "use_tensor_cores", "paged_kv_indptr_buffer"}
    names |= {"paged_kv_indices_buffer", "paged_kv_last_page_len_buffer"}
    assert names <= inspect.signature(wrapper).parameters.keys()
    plan = inspect.unwrap(flashinfer.BatchDecodeWithPagedKVCacheWrapper.plan)
    inspect.signature(plan).bind(None, 0, 1, 2, 28, 4, 128, 1, data_type=0, q_data_type=0)
    run = inspect.unwrap(flashinfer.BatchDecodeWithPagedKVCacheWrapper.run)
    inspect.signature(run).bind(None, 0, (1, 2))


def test_attention_is_timed_on_this_machine(tmp_path, monkeypatch):
    line = "attention --shape tiny --batch 2 --layers 2 --rounds 1 --copy-mib 1 --repeats 1"
    monkeypatch.setattr("sys.argv", [*line.split(), "--out", str(tmp_path / "gpu.json")])
    attention.main()
    (kept,) = json.loads((tmp_path / "gpu.json").read_text())
    assert (kept["unit"], kept["output_len"], kept["prediction"]) == (
        "share of the copy's speed",
        95,
        None,
    )
    assert kept["stock"] > 0
    assert kept["dynts"] > 0


def test_what_is_timed_runs_as_often_as_it_says():
    calls = []
    timing.milliseconds(lambda: calls.append("run"), lambda: calls.append("prepare"), CPU, repeats=2)
    assert calls == ["prepare", "run"] * (timing.WARM_UPS + 2)
    assert timing.captured(timing.nothing, CPU) is timing.nothing


CPU = torch.device("cpu")


def result(bench: str, unit: str, batch: int, length: int, stock: float | None, dynts: float) -> dict:
    ratio = report.ratio_of(stock, dynts)
    shape = {"shape": "qwen-7b", "batch": batch, "output_len": length}
    cell = {"bench": bench, "unit": unit, **shape, "stock": stock, "dynts": dynts, "ratio": ratio}
    return cell | {"device": "NVIDIA H200", "command": "c", "prediction": None}


@pytest.mark.parametrize(
    ("cell", "target", "met"),
    [
        (result("untriggered", targets.TIME, 32, 512, 10.0, 10.2), "DynTS/stock <= 1.02", True),
        (result("untriggered", targets.TIME, 1, 512, 10.0, 10.3), "DynTS/stock <= 1.02", False),
        (result("untriggered", targets.IDENTICAL, 1, 512, 4, 3), "DynTS/stock >= 1", False),
        (result("fixed_batch", targets.TIME, 1, 16384, 10.0, 10.0), "DynTS/stock <= 1", True),
        (result("fixed_batch", targets.THROUGHPUT, 32, 16384, 100.0, 125.0), "DynTS/stock >= 1.25", True),
        (result("fixed_batch", targets.PEAK, 8, 32768, 32968, 5000), "stock/DynTS >= 6.6", True),
        (result("fixed_batch", targets.PEAK, 8, 32768, 32000, 5000), "stock/DynTS >= 6.6", False),
        (result("fixed_batch", targets.SCORING_SHARE, 1, 8192, None, 0.5), "DynTS <= 1", True),
        (result("fixed_batch", targets.COMPACTION_SHARE, 1, 8192, None, 0.6), "DynTS <= 0.5", False),
        (result("attention", targets.SHARE_OF_COPY, 8, 4999, 0.8, 0.76), "DynTS/stock >= 0.95", True),
        (result("fixed_batch", targets.TIME, 8, 16384, 10.0, 9.0), None, None),
    ],
    ids=lambda value: value["unit"] if isinstance(value, dict) else str(value),
)
def test_a_cell_is_judged_by_its_target(cell, target, met):
    assert targets.judged(cell, standard=True) == {"target": target, "met": met}
    assert targets.judged(cell, standard=False) == {"target": None, "met": None}


def test_other_windows_or_a_small_pool_have_no_target():
    usual = {"budget": None, "local_window": None, "keep_ratio": None, "pool_tokens": None, "flags": ""}
    assert targets.is_standard(usual)
    assert targets.is_standard({})
    for name, value in (("budget", 3000), ("pool_tokens", 80_000), ("flags", "--tp-size 2")):
        assert not targets.is_standard(usual | {name: value})


def test_a_target_that_a_side_has_no_number_for_is_not_met():
    cell = result("fixed_batch", targets.THROUGHPUT, 32, 16384, None, 100.0)
    assert targets.judged(cell, standard=True)["met"] is False


def test_the_whole_matrix_is_one_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["fixed_batch", "--shape", "llama-8b"])
    loads = fixed_batch.loads_of(fixed_batch.parse())
    assert {load.num_prompts for load in loads} == {1, 8, 20, 32, 64, 128}
    assert {load.output_len for load in loads} == {4096, 16384, 32768}
    assert len(loads) == 18


def test_a_copy_without_a_repository_must_be_told_its_commit(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() is None
    monkeypatch.setattr("sys.argv", ["kernels"])
    with pytest.raises(SystemExit):
        kernels.parse()
    assert "required: --commit" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["gpu", "kernels"])
    with pytest.raises(SystemExit, match="name it with --commit"):
        runner.main()


HERE = install.Interpreter(Path(sys.executable))


def asked(tmp_path: Path, *steps: str, tiny: bool = False) -> Namespace:
    return Namespace(steps=steps, tiny=tiny, shape="llama-8b", out=tmp_path, commit="abc1234")


GOOD = runner.Step("prints its help", ("json.tool", "--help"), 60, bench=False)


def test_a_failed_step_does_not_keep_the_others_from_running(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(install, "located", lambda: HERE)
    bad = replace(GOOD, words=("json.tool", "--no-such-flag"))
    monkeypatch.setattr(runner, "STEPS", {"bad": bad, "good": GOOD})
    assert runner.run_all(asked(tmp_path, "bad", "good"), time.monotonic() + 300) == ["bad"]
    assert "== good: status 0" in capfd.readouterr().out
    assert "usage" in (tmp_path / "good.log").read_text()


def test_a_step_that_does_not_end_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(install, "located", lambda: HERE)
    assert runner.run("endless", ("http.server", "--bind", "127.0.0.1", "0"), 1, tmp_path) == (
        runner.TIMED_OUT
    )


def test_no_step_begins_when_the_minutes_are_over(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "STEPS", {"good": GOOD})
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("ran"))
    assert runner.run_all(asked(tmp_path, "good"), time.monotonic() + 30) == ["good"]


def test_nothing_but_the_installation_runs_before_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(install, "located", lambda: None)
    assert runner.run("kernels", GOOD.words, 60, tmp_path) == runner.NOT_INSTALLED
    assert "run the step install first" in capsys.readouterr().out
    assert runner.run("install", GOOD.words, 60, tmp_path) == 0


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize(
    "bench", [attention, crowds, fixed_batch, kernels, shared_prefix, untriggered, whole_pool]
)
def test_every_benchs_parser_takes_its_step(bench, tiny, monkeypatch, tmp_path):
    name = bench.__name__.removeprefix("benchmark.gpu.")
    monkeypatch.setattr("sys.argv", runner.words_of(name, asked(tmp_path, name, tiny=tiny)))
    args = bench.parse()
    assert (args.out, args.commit) == (tmp_path / f"{name}.json", "abc1234")


def test_the_steps_are_listed_without_any_package():
    """As on a bare machine: no site-packages, nothing on the path."""
    bare = (
        "import sys; sys.path.insert(0, sys.argv.pop());"
        "from benchmark.gpu import __main__ as runner; runner.main()"
    )
    command = [sys.executable, "-I", "-S", "-c", bare, str(install.ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "whole_pool" in done.stdout


def test_an_unknown_step_is_named_beside_those_that_there_are(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu", "lane"])
    with pytest.raises(SystemExit):
        runner.main()
    assert "no step lane; there are install, tests" in capsys.readouterr().err


def test_both_servers_at_once_need_a_pool_of_a_given_size(monkeypatch):
    monkeypatch.setattr(servers.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("sys.argv", ["fixed_batch", "--side-by-side"])
    with pytest.raises(SystemExit, match="--side-by-side needs --pool-tokens"):
        servers.setup_of(fixed_batch.parse())


def test_an_engine_that_is_there_is_not_fetched(monkeypatch, tmp_path, capsys):
    """Only entry points are written, by which SGLang finds the plug-in in this repository."""
    monkeypatch.setattr(install, "ENTRY_POINTS", tmp_path / "entry_points")
    monkeypatch.setattr(install.environment, "is_complete", lambda: False)
    monkeypatch.setattr(install.environment, "ensure", lambda say: pytest.fail("fetched"))
    assert install.has_engine()
    assert install.located() is None
    found = install.install()
    assert found.python == Path(sys.executable)
    assert found.paths == (tmp_path / "entry_points",)
    assert "only this project's entry points are added" in capsys.readouterr().out
    (metadata,) = (tmp_path / "entry_points").glob("sgl_dynts-*.dist-info")
    assert "dynts = sglang_dynts:register" in (metadata / "entry_points.txt").read_text()
    root = install.ROOT
    assert found.environ()["PYTHONPATH"].startswith(f"{root}:{root}/python:{tmp_path}/entry_points")


def test_without_an_engine_the_environment_is_made(monkeypatch, tmp_path):
    made: list[Path] = []
    monkeypatch.setattr(install.environment, "is_complete", lambda: False)
    monkeypatch.setattr(install, "needed_engine", lambda: "0.0.1")
    monkeypatch.setattr(install.environment, "made", lambda: made[0] if made else None)
    monkeypatch.setattr(install.environment, "ensure", lambda say: made.append(tmp_path / "python"))
    assert install.located() is None
    assert install.install() == install.Interpreter(tmp_path / "python")


def test_a_machine_that_can_install_nothing_says_what_to_do(monkeypatch):
    def fail() -> install.Interpreter:
        raise install.SetupError("no index answers")

    monkeypatch.setattr(install, "install", fail)
    monkeypatch.setattr("sys.argv", ["install"])
    with pytest.raises(
        SystemExit, match=r"no index answers\nWithout a network, .* that has sglang 0.5.23"
    ):
        install.main()


def test_missing_entry_points_are_named(monkeypatch):
    monkeypatch.setattr(check, "entry_points", lambda group: [])
    assert check.missing_entry_points() == ["dynts", "dynts_host_cpu"]


def test_a_chart_begins_with_the_first_request():
    waited = [Load(0.25, 0, 0), Load(0.5, 0, 0), Load(0.75, 9, 1), Load(1.25, 12, 1), Load(1.5, 0, 0)]
    assert plots.seconds_since_first(waited) == [-0.25, 0.0, 0.25, 0.75, 1.0]
    assert plots.seconds_since_first(WATCH.loads) == [0.0, 0.25]
    assert plots.seconds_since_first(waited[:2]) == [0.0, 0.25]
    assert plots.seconds_since_first([]) == []


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
