"""The benchmark of drafts against a client that answers from a table: both sides in one row."""

import json
from contextlib import contextmanager

import pytest

from benchmark import drafts
from benchmark.harness.tables import DRAFTS, filled
from benchmark.ledgers.evaluate import problems_of
from sgl_dynts.demo import ledger
from sgl_dynts.harness.client import Client

VOCABULARY = ledger.Vocabulary()
PROBLEMS = problems_of("test", 3, 10)


class Drafting(Client):
    """Answers right with the full cache; with DynTS it misses the last problem and verifies more."""

    def __init__(self) -> None:
        super().__init__("http://nowhere")
        self.answers = {tuple(VOCABULARY.encode(one.prompt)): one.completion for one in PROBLEMS}

    def call(self, path, body=None, timeout=0.0):
        assert path == "/generate"
        assert body is not None
        prompt, asked = tuple(body["input_ids"]), body["sampling_params"]
        dynts = asked["custom_params"]["dynts"]["enabled"]
        is_wrong = dynts and prompt == tuple(VOCABULARY.encode(PROBLEMS[-1].prompt))
        text = "done </think> a a=1 <eos>" if is_wrong else self.answers[prompt]
        numbers = {"compactions": 4, "peak_window_len": 300} if dynts else {"peak_window_len": 700}
        meta = {"completion_tokens": 400, "spec_verify_ct": 125 if dynts else 100, "dynts": numbers}
        return {"output_ids": VOCABULARY.encode(text), "meta_info": meta}


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The arguments of each server that is asked for; none starts."""
    servers = []

    @contextmanager
    def running(words, *_more):
        servers.append(words)
        yield Drafting()

    monkeypatch.setattr(drafts, "running", running)
    return servers


def test_a_row_has_both_sides_and_is_kept(started, tmp_path, capsys):
    out = tmp_path / "drafts.json"
    asked = ["--num-problems", "3", "--steps", "10", "--out", str(out)]
    drafts.main(asked)
    drafts.main([*asked, "--algorithms", "NGRAM"])  # in place of the earlier row
    rows = json.loads(out.read_text())
    assert [row["algorithm"] for row in rows] == ["STANDALONE", "NGRAM"]
    assert rows[0]["full"] | {"tokens": 1200, "verifications": 300} == rows[0]["full"]
    sides = [(row[side]["accept_length"], row[side]["right"]) for row in rows for side in drafts.SIDES]
    assert sides == [(4.0, 3), (3.2, 2)] * 2
    shown = "| NGRAM | 3 | 4.00 | 3.20 | 3 → 2 | 700 → 300 | 12 |"
    assert filled(DRAFTS, rows)[-1] == shown
    assert shown in capsys.readouterr().out


def test_each_side_of_each_way_to_draft_gets_its_own_server(started, tmp_path):
    drafts.main(["--num-problems", "1", "--steps", "10", "--out", str(tmp_path / "drafts.json")])
    names = [words[words.index("--speculative-algorithm") + 1] for words in started]
    assert names == ["STANDALONE", "STANDALONE", "NGRAM", "NGRAM"]
    drafted = ["--speculative-draft-model-path" in words for words in started]
    assert drafted == [True, True, False, False]
