"""Plain texts in place of traces: how they are cut, what is refused, and the way to a predictor."""

import json
import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmark.harness.tiny_models import word_tokenizer
from sgl_dynts.config import DynTSConfig
from sgl_dynts.training import fit_predictor, train
from sgl_dynts.training.collect import trace_key
from sgl_dynts.training.pipeline import split_by_text
from sgl_dynts.training.texts import TextCut, default_length, text_traces
from tests.unit.training.test_importance import SIZES

WINDOWS = DynTSConfig(24, 8, 0.5)
train = partial(train, progress=False)


def words(seed: int, num: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(8, SIZES['vocab_size'])}" for _ in range(num))


class Tokenizer:
    """A word is a number; a text begins with the tokens in `first`."""

    def __init__(self, *first: int) -> None:
        self.first = list(first)

    def __call__(self, text: str, verbose: bool = True) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[*self.first, *map(int, text.split())])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(path)
    word_tokenizer(SIZES["vocab_size"]).save_pretrained(path)
    return path


@pytest.fixture
def texts(tmp_path):
    place = tmp_path / "texts"
    (place / "more").mkdir(parents=True)
    for seed, name in enumerate(("a.txt", "b.txt", "c.txt", "more/d.txt")):
        (place / name).write_text(words(seed, 90))
    (place / "left.md").write_text(words(9, 90))
    return place


def ids_of(trace):
    return trace.prompt_ids, trace.output_ids


def test_a_text_is_cut_into_windows_that_begin_with_a_question():
    (first, second) = text_traces(["0 1 2 3 4 5 6 7 8 9 10 11 12 13"], Tokenizer(), TextCut(6, 2))
    assert ids_of(first) == ([0, 1], [2, 3, 4, 5])
    assert ids_of(second) == ([6, 7], [8, 9, 10, 11])  # 12 and 13 are too few for a window
    assert first.thinking == (0, 2)  # the last token stands for the answer, the one before for the marker
    assert first.problem == second.problem


def test_every_window_begins_as_the_tokenizer_begins_a_text():
    windows = text_traces(["2 3 4 5 6 7 8 9 10"], Tokenizer(1), TextCut(6, 2))
    assert list(map(ids_of, windows)) == [([1, 2], [3, 4, 5, 6]), ([1, 7], [8, 9, 10])]


def test_of_a_text_so_many_windows_are_taken_as_are_wanted():
    given = [" ".join(map(str, range(start, start + 30))) for start in (0, 100)]
    windows = text_traces(given, Tokenizer(), TextCut(6, 2, most=2))
    assert [trace.prompt_ids for trace in windows] == [[0, 1], [6, 7], [100, 101], [106, 107]]


def test_a_place_is_a_file_or_a_folder_and_a_text_in_a_sequence_is_itself(tmp_path):
    (tmp_path / "b.txt").write_text("1 2 3 4 5")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.txt").write_text("6 7 8 9 10")
    (tmp_path / "c.md").write_text("0 0 0 0 0")
    read = partial(text_traces, tokenizer=Tokenizer(), cut=TextCut(5, 1))
    of_folder = [trace.prompt_ids for trace in read(tmp_path)]
    assert of_folder == [trace.prompt_ids for trace in read(str(tmp_path))] == [[1], [6]]
    assert [trace.prompt_ids for trace in read([tmp_path / "c.md", "3 4 5 6 7"])] == [[0], [3]]


def test_texts_that_cannot_be_read_are_refused(tmp_path):
    read = partial(text_traces, tokenizer=Tokenizer(), cut=TextCut(6, 2))
    with pytest.raises(ValueError, match=r"no file \*.txt in it; name a folder"):
        read(tmp_path)
    with pytest.raises(ValueError, match="none has more than 4 tokens; give longer ones"):
        read(["1 2 3 4"])
    (tmp_path / "latin.txt").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt: not UTF-8 .*; give plain texts"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((4, 2), "text_len=4 leaves no thinking behind question_len=2; raise it to 5"),
        ((9, 0), "question_len=0 must be at least 1"),
        ((9, 2, 0), "per_text=0 must be at least 1"),
    ],
)
def test_a_cut_that_leaves_nothing_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TextCut(*values)


def test_windows_of_texts_are_two_budgets_long_or_what_the_model_takes():
    assert default_length(WINDOWS, 4096) == 48
    assert default_length(WINDOWS, 40) == 40


def test_windows_of_a_text_are_held_out_together():
    given = [" ".join(map(str, range(start, start + 40))) for start in range(0, 1000, 100)]
    windows = text_traces(given, Tokenizer(), TextCut(10, 2))
    split = split_by_text(windows, 0.3)
    held_out = {trace.problem for trace in windows if trace_key(trace) in split.held_out}
    fitted = {trace.problem for trace in windows if trace_key(trace) in split.fitted}
    assert (len(held_out), len(fitted), held_out & fitted) == (3, 7, set())
    assert (len(split.held_out), len(split.fitted)) == (12, 28)


@pytest.mark.parametrize("target", ["future", "deletion"])
def test_texts_give_a_predictor_and_say_how_it_does_beside_calibrated(folder, texts, target):
    told = []
    trained = train(folder, None, WINDOWS, texts=texts, question_len=4, target=target, tell=told.append)
    report = trained.report
    assert (report.num_fitted, report.num_held_out, report.num_short) == (6, 2, 0)
    assert report.header.target == f"{target}_8"
    assert report.recipe.scale == ("log" if target == "deletion" else "power")
    assert report.comparison is not None
    assert set(report.comparison.kl) == {"window", "calibrated", "predictor"}
    assert report.comparison.verdict in told[-1]
    assert any(line.startswith("expected: up to ") for line in told)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"target": "answer"}, "target 'answer' needs an answer, and texts have none; choose future or"),
        ({"target": "gradient"}, "target 'gradient' needs an answer"),
        ({"traces": "t.jsonl"}, "give either traces or texts"),
        ({"texts": None}, "give either traces or texts"),
        ({"text_len": 300}, "text_len=300, but the model takes 256 tokens"),
        (
            {"distance": 60},
            "texts: none of 8 windows has 2 tokens that count for the target future_60",
        ),
        ({"texts": [words(1, 90)]}, "no trace is fitted; give more questions, or several texts"),
        ({"recipe": {"batchsize": 3}}, "recipe: batchsize is no field of FitRecipe"),
    ],
)
def test_what_texts_cannot_give_is_refused(folder, texts, more, message):
    with pytest.raises(ValueError, match=message):
        train(folder, windows=WINDOWS, **{"texts": texts, "question_len": 4, **more})


def test_a_loaded_model_that_names_no_folder_has_no_tokenizer(texts):
    torch.manual_seed(3)
    with pytest.raises(ValueError, match="names no folder, so that its tokenizer is not known"):
        train(LlamaForCausalLM(LlamaConfig(**SIZES)), None, WINDOWS, texts=texts)


def test_the_command_takes_texts_in_place_of_traces(folder, texts, tmp_path, capsys):
    output, called = tmp_path / "predictor.safetensors", tmp_path / "called.safetensors"
    flags = ["--budget", "24", "--local-window", "8", "--keep-ratio", "0.5", "--question-len", "4"]
    words = [str(folder), str(output), "--texts", str(texts), *flags, "--per-text", "1", "--epochs", "3"]
    assert fit_predictor.main(words) == 0
    train(
        *(folder, None, WINDOWS),
        texts=texts,
        question_len=4,
        per_text=1,
        recipe={"epochs": 3},
    ).save(called)
    by_command, by_call = load_file(output), load_file(called)
    assert all(torch.equal(by_command[name], by_call[name]) for name in by_command | by_call)
    kept = json.loads(output.with_suffix(".fit.json").read_text())
    assert kept == json.loads(called.with_suffix(".fit.json").read_text())
    assert (kept["num_fitted"], kept["recipe"]["epochs"], kept["recipe"]["patience"]) == (3, 3, 3)
    told = capsys.readouterr()
    assert f"wrote {output}" in told.out
    assert ("do not ship it" in told.err) == (kept["comparison"]["difference"] > 0)


def test_the_command_says_that_one_of_the_two_is_wanted(folder, tmp_path, capsys):
    assert fit_predictor.main([str(folder), str(tmp_path / "out.safetensors")]) == 1
    assert "not trained: give either traces or texts" in capsys.readouterr().err
