"""What is drawn of a trace is what the method does with it; the shipped model reads one ledger."""

import math

import pytest

from benchmark.ledgers.export import load_model_folder
from benchmark.pictures import Painter, main, share_of_critical_held
from sgl_dynts import demo_model_path
from sgl_dynts.checkpoint import find_predictor, load_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo.ledger import make_problem

CONFIG = DynTSConfig(200, 64, 0.8)
PROBLEM = make_problem(3, 10)
WORDS = f"{PROBLEM.prompt} {PROBLEM.completion}".split()


@pytest.fixture(scope="module")
def picture():
    folder = demo_model_path()
    predictor = load_predictor(find_predictor(folder)).float()
    return Painter(load_model_folder(folder), predictor, CONFIG).picture(PROBLEM)


def test_lengths_go_up_by_one_and_fall_at_compactions_alone(picture):
    lengths = [picture.question_len, *picture.lengths]
    falls = [seen for seen in range(1, len(lengths)) if lengths[seen] != lengths[seen - 1] + 1]
    assert [picture.question_len + seen for seen in falls] == list(picture.at)
    assert len(falls) > 2
    assert {lengths[seen] for seen in falls} == {CONFIG.local_window + math.floor(0.8 * 136)}


def test_question_and_newest_tokens_are_held_after_every_compaction(picture):
    for at, held in zip(picture.at, picture.held, strict=True):
        assert held >= set(range(picture.question_len))
        assert held >= set(range(at - CONFIG.local_window, at))


def test_critical_tokens_are_the_first_of_their_record(picture):
    for position in picture.critical:
        assert WORDS[position - 1] == "so"
        assert WORDS.count(WORDS[position]) > 1


def test_scores_are_those_of_thinking_tokens(picture):
    scored = [at for at, score in enumerate(picture.predicted) if not math.isnan(score)]
    assert scored == list(range(picture.question_len, WORDS.index("</think>")))


def test_the_predictor_holds_more_of_what_matters_than_chance(picture):
    held = len(picture.held[-1]) - picture.question_len
    assert share_of_critical_held(picture) > held / (picture.at[-1] - picture.question_len)


def test_the_command_draws_and_says_what_is_held(tmp_path, capsys):
    main(["--steps", "10", "--num-problems", "2", "--out", str(tmp_path)])
    names = {f"trace-{name}.png" for name in ("heat-strip", "sawtooth", "importance")}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
    assert "2 traces drawn" in capsys.readouterr().out
