"""The command, from a model's folder and a file of traces to a predictor file, with the demo model."""

import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from benchmark.ledgers.fit_importance import as_trace
from sgl_dynts import demo_model_path
from sgl_dynts.checkpoint import find_predictor, load_predictor
from sgl_dynts.demo.ledger import make_problem
from sgl_dynts.training import collect, fit_predictor, pipeline
from sgl_dynts.training.attempts import NEVER_ENDS, Log
from sgl_dynts.training.collect import Model, Target, trace_states
from sgl_dynts.training.importance import TraceSpans, future_importance
from sgl_dynts.training.states import StateStore
from sgl_dynts.training.trace_file import TraceHeader, TraceWriter, fingerprint

FOLDER = demo_model_path()
DISTANCE = 20
TARGET = Target("future", DISTANCE)
TRACES = [as_trace(make_problem(seed, 4, brief=True)) for seed in range(6)]
FLAGS = ["--distance", str(DISTANCE), "--epochs", "2", "--batch-size", "2", "--held-out", "0.3"]
WINDOWS = ["--budget", "60", "--local-window", "16", "--keep-ratio", "0.5"]


def write(path, traces=TRACES):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    with TraceWriter(path, TraceHeader("demo", fingerprint(tokenizer.get_vocab()), {})) as writer:
        for trace in traces:
            writer.add(trace)
    return path


def train(tmp_path, *more, name="predictor"):
    output = tmp_path / f"{name}.safetensors"
    paths = [str(FOLDER), str(tmp_path / "traces.jsonl"), str(output)]
    return fit_predictor.main([*paths, *FLAGS, *WINDOWS, *more]), output


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "traces.jsonl")
    return tmp_path


def test_the_command_writes_a_predictor_that_a_server_finds(folder, capsys):
    status, output = train(folder)
    assert status == 0
    source = find_predictor(folder, output)
    assert (source.header.target, source.header.windows.budget) == ("future_20", 60)
    assert (source.header.windows.local_window, source.header.windows.keep_ratio) == (16, 0.5)
    assert load_predictor(source).inner_sizes == (256, 64)
    kept = json.loads(output.with_suffix(".fit.json").read_text())
    assert [epoch["epoch"] for epoch in kept["epochs"]] == [1, 2]
    assert (kept["num_fitted"], kept["num_held_out"]) == (4, 2)
    assert 0 <= kept["epochs"][1]["held_out"]["recall_30"] <= 1
    assert output.with_suffix(".fit.png").stat().st_size > 10_000
    assert "states of 6 of 6 traces" in capsys.readouterr().out


def test_a_broken_line_is_named_and_after_its_repair_nothing_is_computed_twice(folder, capsys):
    assert train(folder, "--work", str(folder / "work"), name="first")[0] == 0
    traces = folder / "traces.jsonl"
    with traces.open("a") as file:
        file.write('{"problem": "half a li\n')
    status, output = train(folder, "--work", str(folder / "other"))
    assert status == 1
    assert not output.exists()
    assert f"{traces}:8" in capsys.readouterr().err
    lines = traces.read_text().splitlines()[:-1]
    lines.append(as_trace(make_problem(6, 4, brief=True)).to_line())
    traces.write_text("\n".join(lines) + "\n")
    (folder / "work" / "fit.safetensors").unlink()
    assert train(folder, "--work", str(folder / "work"))[0] == 0
    assert "states of 1 of 1 traces" in capsys.readouterr().out


def test_traces_of_another_tokenizer_and_longer_than_the_model_are_refused(folder, capsys):
    lines = (folder / "traces.jsonl").read_text().splitlines(keepends=True)
    other = json.loads(lines[0]) | {"tokenizer": "0" * 16}
    (folder / "traces.jsonl").write_text(json.dumps(other) + "\n" + "".join(lines[1:]))
    assert train(folder)[0] == 1
    assert "traces.jsonl:1: tokenizer" in capsys.readouterr().err
    too_long = replace(TRACES[0], prompt_ids=[1] * 5000)
    (folder / "traces.jsonl").unlink()
    write(folder / "traces.jsonl", [TRACES[1], too_long])
    assert train(folder)[0] == 1
    assert "traces.jsonl:3: " in capsys.readouterr().err


def test_traces_too_short_for_the_distance_are_told(folder, capsys):
    assert train(folder, "--distance", "4000")[0] == 1
    assert "none of 6 right traces" in capsys.readouterr().err


def test_a_file_without_a_right_trace_says_what_came_of_the_attempts(folder, capsys):
    traces = folder / "traces.jsonl"
    traces.unlink()
    write(traces, [replace(trace, correct=False) for trace in TRACES[:2]])
    assert train(folder)[0] == 1
    assert "traces.jsonl: no right trace in it; it has no log beside it" in capsys.readouterr().err
    log = Log(folder / "traces.log")
    for outcome in (NEVER_ENDS, "wrong", NEVER_ENDS):
        log.add("a", outcome)
    log.close()
    assert train(folder)[0] == 1
    told = capsys.readouterr().err
    assert "no right trace in it; of 3 attempts 2 never ends thinking, 1 wrong; name the model's" in told


@pytest.mark.parametrize(
    ("file", "settings", "method"),
    [
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ("config.json", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        (
            "config.json",
            {"compression_config": {"quant_method": "compressed-tensors"}},
            "compressed-tensors",
        ),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, "hf_quant_config.json"),
    ],
)
def test_a_quantised_model_is_refused_in_one_sentence(folder, capsys, file, settings, method):
    model = folder / "model"
    shutil.copytree(FOLDER, model)
    known = json.loads((model / file).read_text()) if (model / file).exists() else {}
    (model / file).write_text(json.dumps(known | settings))
    words = [str(model), str(folder / "traces.jsonl"), str(folder / "out.safetensors")]
    assert fit_predictor.main([*words, *FLAGS, *WINDOWS]) == 1
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert told.startswith(f"not trained: {model}: its weights are quantised ({method}), and targets")


def test_wrong_traces_at_hand_are_told():
    wrong = [replace(trace, correct=False) for trace in TRACES[:2]]
    with pytest.raises(ValueError, match="traces: none of those given is right"):
        pipeline.train(FOLDER, wrong)


def test_states_of_a_trace_are_those_of_its_thinking_tokens_that_have_a_far_reader(tmp_path):
    model, trace = Model.open(FOLDER, torch.float32).load("cpu"), TRACES[0]
    states = trace_states(model, trace, TARGET)
    question, end = len(trace.prompt_ids), len(trace.prompt_ids) + trace.thinking[1]
    whole = future_importance(
        model,
        torch.tensor([*trace.prompt_ids, *trace.output_ids]),
        TraceSpans(question, end, trace.length),
        DISTANCE,
    )
    count = trace.length - DISTANCE - 1 - question
    assert len(states) == count < len(whole.targets)
    torch.testing.assert_close(states.targets, whole.targets[:count], rtol=0, atol=0)
    torch.testing.assert_close(states.hidden, whole.hidden[:count], rtol=0, atol=0)
    assert trace.critical is not None
    assert states.critical.nonzero()[:, 0].tolist() == [
        index for index in trace.critical if index < count
    ]


def test_questions_are_held_out_whole_and_the_same_whatever_else_is_there():
    again = replace(TRACES[0], output_ids=[*TRACES[0].output_ids, 7])
    split = pipeline.split_by_question([*TRACES, again], 0.3)
    sides = [collect.trace_key(trace) in split.held_out for trace in (TRACES[0], again)]
    assert sides[0] == sides[1]
    assert len(split.held_out) + len(split.fitted) == 7


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_states_and_says_how_to_go_on(folder, capsys, monkeypatch, number):
    before = signal.getsignal(signal.SIGTERM)
    compute, seen = collect.trace_states, []

    def interrupted(model, trace, target):
        seen.append(trace)
        if len(seen) == 4:
            signal.raise_signal(number)
        return compute(model, trace, target)

    monkeypatch.setattr(collect, "trace_states", interrupted)
    status, output = train(folder)
    assert status == fit_predictor.INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err
    settings = Model.open(FOLDER).settings(TARGET)
    assert len(StateStore(output.with_suffix(".work") / "states", settings).places) == 3
    assert train(folder)[0] == 0
    assert len(seen) == 7
    assert signal.getsignal(signal.SIGTERM) == before
