"""Training from Python: a loaded model and traces at hand, interrupted, silent, like the command."""

import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from sgl_dynts.checkpoint import find_predictor
from sgl_dynts.config import PAPER_CONFIG, DynTSConfig
from sgl_dynts.training import FitRecipe, collect, fit, fit_predictor, train
from sgl_dynts.training.pipeline import HEAD
from sgl_dynts.training.recipe import recipe_for
from sgl_dynts.training.trace_file import Trace
from tests.unit.training.test_fit_predictor import DISTANCE, FLAGS, FOLDER, WINDOWS, write
from tests.unit.training.test_importance import SIZES

CONFIG = DynTSConfig(40, 12, 0.5)
RECIPE = FitRecipe(epochs=3, batch_size=2)


def made_up(number):
    draw = random.Random(number)
    ids = [draw.randrange(SIZES["vocab_size"]) for _ in range(70)]
    return Trace(f"p{number}", "made up", "?", ids[:5], ids[5:], (0, 50), "!", correct=True)


TRACES = [made_up(number) for number in range(5)]


@pytest.fixture
def model():
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def equal(*predictors):
    return all(map(torch.equal, *(predictor.parameters() for predictor in predictors)))


def test_a_loaded_model_and_traces_give_a_predictor_and_what_it_is_worth(model, tmp_path):
    wrong = replace(made_up(9), correct=False)
    trained = train(model, iter([*TRACES, wrong]), CONFIG, held_out=0.4, recipe=RECIPE, progress=False)
    predictor, report = trained
    assert predictor(torch.zeros(7, SIZES["hidden_size"])).shape == (7,)
    assert (report.num_fitted, report.num_held_out, report.num_short) == (3, 2, 0)
    assert report.header.windows == CONFIG
    assert (report.header.base_model, report.header.target) == ("llama", "future_12")
    assert report.held_out == report.epochs[2].held_out
    assert str(report).startswith(HEAD)
    assert len(str(report).splitlines()) == 1 + 3 + 2
    assert report.comparison is not None
    assert (report.comparison.num_texts, report.comparison.windows) == (2, CONFIG)
    trained.save(tmp_path / "made.safetensors")
    assert find_predictor(tmp_path, tmp_path / "made.safetensors").header == report.header
    assert {file.name for file in tmp_path.iterdir()} == {
        *("made.safetensors", "made.fit.json", "made.fit.png")
    }


def test_windows_that_are_not_given_are_the_papers_and_the_recipe_suits_few_traces(model):
    report = train(model, TRACES, target="answer", progress=False).report
    assert report.header.windows == PAPER_CONFIG
    assert report.recipe == recipe_for(4, "answer")
    assert report.header.target == "answer"
    assert report.held_out == min(report.epochs, key=lambda epoch: epoch.held_out_loss).held_out


def test_a_comparison_is_not_made_if_it_is_not_wanted(model):
    report = train(model, TRACES, CONFIG, recipe=RECIPE, compared=False, progress=False).report
    assert report.comparison is None
    assert str(report).endswith("not compared with `calibrated`: it was not asked for")


@pytest.mark.parametrize(("module", "name"), [(collect, "trace_states"), (fit, "_run_epoch")])
def test_an_interrupted_call_given_once_more_ends_as_one_that_was_not(
    model, tmp_path, monkeypatch, module, name
):
    whole = train(model, TRACES, CONFIG, recipe=RECIPE, progress=False)
    work, seen = getattr(module, name), []

    def interrupted(*arguments):
        seen.append(arguments)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return work(*arguments)

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(model, TRACES, CONFIG, recipe=RECIPE, work=tmp_path, progress=False)
    resumed = train(model, TRACES, CONFIG, recipe=RECIPE, work=tmp_path, progress=False)
    expected = {"trace_states": len(TRACES) + 1, "_run_epoch": RECIPE.epochs + 1}
    assert len(seen) == expected[name]
    assert equal(resumed.predictor, whole.predictor)
    assert resumed.report == whole.report


def test_nothing_is_printed_and_bars_are_drawn_unless_they_are_not_wanted(model, capsys):
    train(model, TRACES, CONFIG, recipe=RECIPE)
    told = capsys.readouterr()
    assert told.out == ""
    assert "states: 100%" in told.err
    assert "fit: 100%" in told.err
    train(model, TRACES, CONFIG, recipe=RECIPE, progress=False)
    assert capsys.readouterr() == ("", "")


def test_the_command_writes_what_the_call_does(tmp_path):
    traces, called = write(tmp_path / "traces.jsonl"), tmp_path / "called.safetensors"
    command = tmp_path / "command.safetensors"
    assert fit_predictor.main([str(FOLDER), str(traces), str(command), *FLAGS, *WINDOWS]) == 0
    train(
        *(str(FOLDER), str(traces), DynTSConfig(60, 16, 0.5)),
        distance=DISTANCE,
        held_out=0.3,
        recipe={"epochs": 2, "batch_size": 2},
        progress=False,
    ).save(str(called))
    by_command, by_call = load_file(command), load_file(called)
    assert all(torch.equal(by_command[name], by_call[name]) for name in by_command | by_call)
    assert find_predictor(tmp_path, command).header == find_predictor(tmp_path, called).header
    for suffix in (".fit.json", ".fit.png"):
        files = (path.with_suffix(suffix) for path in (command, called))
        assert len({file.read_bytes() for file in files}) == 1


def test_a_work_folder_of_another_models_weights_is_refused(model, tmp_path):
    train(model, TRACES, CONFIG, recipe=RECIPE, work=tmp_path, progress=False)
    model.lm_head.weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="these states were made with model="):
        train(model, TRACES, CONFIG, recipe=RECIPE, work=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thinking": (3, 3)}, "p0: thinking=.* holds no token"),
        ({"output_ids": [1] * 300}, "p0: 305 tokens, but the model takes 256"),
        ({"output_ids": [50] * 60}, "p0: token id 50, but the model knows 50"),
    ],
)
def test_a_trace_at_hand_that_cannot_be_is_refused_by_its_problem(model, change, message):
    with pytest.raises(ValueError, match=message):
        train(model, [replace(TRACES[0], **change), *TRACES[1:]], CONFIG, progress=False)


def test_a_loaded_model_keeps_its_dtype(model):
    with pytest.raises(ValueError, match="the model is loaded in"):
        train(model, TRACES, CONFIG, dtype=torch.bfloat16, progress=False)
    assert train(model.bfloat16(), TRACES, CONFIG, recipe=RECIPE, progress=False).report.num_held_out == 1
