"""Commands that moved are found under their old names and say the new one."""

import runpy
import sys

import pytest

from sgl_dynts.demo import moved

MOVED = {
    "sgl_dynts.demo.evaluate": "benchmark.ledgers.evaluate",
    "sgl_dynts.demo.train": "benchmark.ledgers.train",
    "benchmark.predictor_gap": "benchmark.studies.predictor_gap",
    "benchmark.transfer": "benchmark.studies.transfer",
    "benchmark.wrong_traces": "benchmark.studies.wrong_traces",
}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_runs_the_command_and_says_the_new_one(old, new, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [old, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(old, run_name="__main__", alter_sys=True)
    assert end.value.code == 0
    said = capsys.readouterr()
    assert f"is now {new}" in said.err or f"is now python -m {new}" in said.err
    assert f"usage: python -m {new}" in said.out


def test_without_a_checkout_it_says_that_one_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(moved, "CHECKOUT", tmp_path)
    with pytest.raises(SystemExit, match=r"python -m benchmark.ledgers.train, in a checkout"):
        moved.go_on("train")


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ImportError):
        runpy.run_module("benchmark.no_such_study")
