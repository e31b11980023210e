"""The benchmark of sets per KV head: rounds on this machine, a server that answers from a table."""

import json
from contextlib import contextmanager
from itertools import count

import pytest

from benchmark import head_sets
from benchmark.harness.tables import HEAD_ROUNDS, HEAD_SERVERS, filled
from sgl_dynts.harness.client import Client


class Timed(Client):
    """Answers at once; a set per head takes two ticks of the clock for each one of one set's."""

    def __init__(self, clock: count) -> None:
        super().__init__("http://nowhere")
        self.clock = clock
        self.asked: list[str] = []

    def call(self, path, body=None, timeout=0.0):
        assert path == "/generate"
        assert body is not None
        params = body["sampling_params"]
        policy = params["custom_params"]["dynts"]["policy"]
        self.asked.append(policy)
        if policy == head_sets.PER_HEAD:
            next(self.clock)
        meta = {"completion_tokens": params["max_new_tokens"], "dynts": {"compactions": 3}}
        return {"meta_info": meta}


@pytest.fixture
def server(monkeypatch) -> Timed:
    clock = count()
    client = Timed(clock)

    @contextmanager
    def running(*_words):
        yield client

    monkeypatch.setattr(head_sets, "running", running)
    monkeypatch.setattr(head_sets.time, "perf_counter", lambda: next(clock) / 1000)
    return client


def test_a_server_is_asked_by_turns_and_the_ratio_is_of_neighbours(server, tmp_path, capsys):
    out = tmp_path / "head_sets.json"
    asked = ["--due", "--running", "1", "--length", "100", "--turns", "3", "--out", str(out)]
    head_sets.main(asked)
    (row,) = json.loads(out.read_text())
    assert (row["one_set_ms"], row["per_head_ms"], row["compactions"]) == pytest.approx((0.01, 0.02, 3))
    assert row["ratio"] == pytest.approx(2)
    one, several = head_sets.ONE_SET, head_sets.PER_HEAD
    assert server.asked == [one, several, one, several, several, one, one, several]
    assert filled(HEAD_SERVERS, [row])[-1] == "| 1 | 100 | 3 | 0.010 | 0.020 | 2.000 (2.000 to 2.000) |"


def test_a_round_is_timed_and_kept_once(tmp_path, capsys):
    out = tmp_path / "head_sets.json"
    asked = ["--due", "2", "--window", "300", "--repeats", "1", "--turns", "0", "--out", str(out)]
    head_sets.main(asked)
    head_sets.main(asked)  # in place of the earlier row
    (row,) = json.loads(out.read_text())
    assert (row["kind"], row["due"], row["window"]) == ("round", 2, 300)
    assert min(row["rewrite_ms"], row["choice_ms"], row["moves_ms"]) > 0
    assert row["moved_mb"] > 0
    assert filled(HEAD_ROUNDS, [row])[-1].startswith("| qwen-7b | 2 | 300 |")
