"""What takes seconds to import is told before."""

import subprocess
import sys
from multiprocessing import spawn
from pathlib import Path

import pytest

from sgl_dynts.loading import say_loading

ROOT = Path(__file__).parents[2]
FIRST_LINE = "Loading torch"


def stderr_of(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    return done.stderr


def test_only_what_is_not_there_is_told(capsys):
    say_loading("sys", "nowhere", "elsewhere")
    assert capsys.readouterr().err == "Loading nowhere and elsewhere, which takes some seconds.\n"
    say_loading("sys")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "sgl_dynts.training.convert", "none", "none"),
        ("-m", "sgl_dynts.training.fit_predictor", "none", "none", "none"),
        ("-m", "benchmark.report", "--help"),
    ],
    ids=lambda words: words[1],
)
def test_a_command_tells_before_it_imports_torch(words):
    assert stderr_of(*words).startswith(FIRST_LINE)


@pytest.mark.parametrize("words", [("-m", "benchmark.texts", "--help"), ("-c", "import benchmark.texts")])
def test_nothing_is_told_where_nothing_slow_comes(words):
    assert stderr_of(*words) == ""


def test_benchmarks_tell_nothing_to_a_program_that_imports_them():
    assert FIRST_LINE not in stderr_of("-c", "import benchmark.report")


@pytest.mark.parametrize(
    ("words", "is_told"),
    [
        (("--attention-backend", "dynts"), True),
        (("--attention-backend=dynts",), True),
        (("--enable-dynts",), True),
        (("--attention-backend", "triton"), False),
    ],
)
def test_a_start_that_asks_for_dynts_is_told_while_sglang_is_being_imported(
    words, is_told, monkeypatch, capsys
):
    from sglang_dynts.boot import host_cpu

    monkeypatch.setattr(sys, "argv", ["launch_server", *words])
    host_cpu.activate()
    assert ("SGLang is being imported" in capsys.readouterr().err) is is_told
    monkeypatch.setattr(sys, "orig_argv", spawn.get_command_line())
    host_cpu.activate()
    assert capsys.readouterr().err == ""
