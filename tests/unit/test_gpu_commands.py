"""Whole commands of the GPU benches, with a stand-in for SGLang's server and load generator."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.gpu import fixed_batch, serving, shared_prefix, untriggered
from benchmark.gpu.servers import RunningServer

STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Processes that are started find it before the real SGLang; the load generator is one too."""
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))

    def generate(arguments: list[str]) -> None:
        subprocess.run([sys.executable, "-m", "sglang.benchmark.serving", *arguments], check=True)

    monkeypatch.setattr(serving, "generate", generate)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command as the runner does; returns the cells that it kept."""

    def run_one(module, line: str) -> list[dict]:
        out = tmp_path / "gpu.json"
        words = f"{module.__name__} --shape tiny --commit abc1234 --out {out} {line}"
        monkeypatch.setattr("sys.argv", words.split())
        monkeypatch.setattr("signal.signal", lambda *_: None)
        module.main()
        return json.loads(out.read_text())

    return run_one


def test_a_fixed_batch_is_compared_reported_and_drawn(run, tmp_path):
    cells = run(fixed_batch, "--batch 1 4 --output-len 150 --question-len 20")
    assert [cell["unit"] for cell in cells[:3]] == [
        "ms per output token",
        "output tokens/s",
        "peak KV tokens",
    ]
    assert [(cell["stock"], cell["dynts"]) for cell in cells[:2]] == [(12.0, 12.0), (300.0, 300.0)]
    assert {(cell["batch"], cell["commit"]) for cell in cells} == {(1, "abc1234"), (4, "abc1234")}
    assert len(cells) == 10
    names = {path.name for path in tmp_path.glob("*.png")}
    assert {"gpu-fixed_batch-tiny-1x150.png", "gpu-fixed_batch-tiny-4x150.png"} < names


def test_a_shared_prefix_load_is_sent_to_both(run):
    (rate, *_) = run(shared_prefix, "--groups 2 --prompts-per-group 3 --output-len 80 --batch 2")
    assert (rate["unit"], rate["stock"], rate["dynts"]) == ("prefix hit rate", 0.25, 0.25)


def test_untriggered_requests_are_asked_twice_at_each_batch(run):
    one, four, *times = run(untriggered, "--batch 1 4 --output-len 40 --question-len 20 --requests 2")
    assert [(cell["batch"], cell["stock"], cell["dynts"]) for cell in (one, four)] == [
        (1, 2, 2),
        (4, 4, 4),
    ]
    assert [(cell["unit"], cell["batch"]) for cell in times] == [
        ("ms per output token", 1),
        ("ms per output token", 4),
    ]


def test_other_tokens_than_stocks_fail_the_command_after_its_report(run, monkeypatch):
    generate = RunningServer.generate
    monkeypatch.setattr(
        RunningServer,
        "generate",
        lambda server, prompts, length: generate(server, prompts, length + (server.side == "dynts")),
    )
    with pytest.raises(SystemExit, match="other tokens than stock at batch 4"):
        run(untriggered, "--batch 4 --output-len 40 --question-len 20")
