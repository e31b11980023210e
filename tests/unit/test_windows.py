"""What somebody says of (B, W_l, r): not given is None, 0 is refused, wherever it is said."""

import importlib
import re
import sys
from argparse import ArgumentParser

import pytest

from benchmark import capacity, predict
from benchmark.gpu import fixed_batch
from benchmark.gpu.servers import setup_of
from benchmark.harness.shapes import WINDOWS
from benchmark.harness.windows import windows_of
from sgl_dynts.config import PAPER_CONFIG, PAPER_CONFIGS, DynTSConfig, Windows, in_flags
from sgl_dynts.window_flags import add_window_flags, windows_given

NUMBERS = {"--budget": 5000, "--local-window": 2000, "--keep-ratio": 0.4}
ZEROS = tuple((flag, "0") for flag in NUMBERS)
COMMANDS = {
    "benchmark.capacity": ZEROS,
    "benchmark.predict": ZEROS,
    "benchmark.gpu.fixed_batch": ZEROS,
    "benchmark.gpu.shared_prefix": ZEROS,
    "benchmark.gpu.untriggered": ZEROS,
    "benchmark.iteration_cost": (("--budget", "0"), ("--usual-budget", "0"), ("--budget", "2")),
    "benchmark.ledgers.evaluate": ZEROS,
    "benchmark.studies.predictor_gap": (("--budgets", "0"),),
    "benchmark.studies.wrong_traces": (("--tight-budget", "0"), ("--tight-local-window", "0")),
    "sgl_dynts.training.fit_predictor": ZEROS,
    "sgl_dynts.training.convert": ZEROS,
}
PLACES = {"sgl_dynts.training.fit_predictor": ("m", "t", "o"), "sgl_dynts.training.convert": ("c", "o")}
REFUSALS = [(command, *words) for command, refused in COMMANDS.items() for words in refused]


@pytest.mark.parametrize(("command", "flag", "value"), REFUSALS)
def test_every_command_refuses_0_and_names_the_flag(command, flag, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [command, *PLACES.get(command, ()), flag, value])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(command).main()
    assert ended.value.code not in (None, 0)
    assert re.search(rf"{flag}\b.* {value}\b.* must lie between", capsys.readouterr().err)


def read(*words: str):
    parser = ArgumentParser()
    add_window_flags(parser, "the paper's")
    return parser.parse_args(words)


def test_a_flag_that_is_not_given_is_none_and_takes_the_default():
    assert windows_given(read()) == Windows()
    assert windows_of(read(), PAPER_CONFIG) == PAPER_CONFIG
    assert windows_of(read("--keep-ratio", "0.3"), PAPER_CONFIG) == DynTSConfig(5000, 2000, 0.3)


def test_flags_that_do_not_fit_the_default_end_the_command_by_the_flags_name():
    message = "error: --budget 2000 must be larger than local_window=2000: raise the budget or shorten"
    with pytest.raises(SystemExit, match=f"^{message}"):
        windows_of(read("--budget", "2000"), PAPER_CONFIG)


def test_flags_that_are_written_are_read():
    words = PAPER_CONFIG.flags()
    assert words == [word for flag, value in NUMBERS.items() for word in (flag, str(value))]
    assert windows_given(read(*words)).complete() == PAPER_CONFIG
    assert Windows(local_window=7).flags("--dynts-") == ["--dynts-local-window", "7"]


def test_what_is_given_goes_over_a_default():
    some = Windows(local_window=7)
    assert (some.given(), some.missing()) == ({"local_window": 7}, ["budget", "keep_ratio"])
    assert some.over(Windows(100, 10)) == Windows(100, 7)
    assert some.over(PAPER_CONFIG).complete(min_selection=3) == DynTSConfig(5000, 7, 0.4, 3)


@pytest.mark.parametrize(
    "wrong", [{"budget": 0}, {"local_window": 0}, {"keep_ratio": 0}, {"budget": 1.5}]
)
def test_a_value_that_cannot_be_is_refused_by_itself(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"^{name}={value} must "):
        Windows(**wrong)


def test_a_configuration_needs_all_three():
    with pytest.raises(ValueError, match=r"^keep_ratio=None must be a number") as refused:
        Windows(100, 10).complete()
    assert in_flags(refused.value, "--dynts-").startswith("--dynts-keep-ratio None must be a number")


def test_benchmarks_take_the_papers_windows_of_the_shape(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["capacity", "--shape", *PAPER_CONFIGS, "--local-window", "1000"])
    jobs = [cell.job for cell in capacity.cells(capacity.parse())]
    expected = [DynTSConfig(5000, 1000, 0.4), DynTSConfig(5000, 1000, 0.3)]
    assert [job.server.windows for job in jobs] == expected
    monkeypatch.setattr(sys, "argv", ["predict", "--shape", "llama-8b"])
    assert [config for _, config in predict.chosen(predict.parse())] == [PAPER_CONFIGS["llama-8b"]]
    monkeypatch.setattr(sys, "argv", ["fixed_batch", "--shape", "tiny"])
    assert setup_of(fixed_batch.parse()).windows == WINDOWS["tiny"]
