"""Spoilt traces say what they should, and answers are read where they stand."""

import json

import pytest

from benchmark.studies import wrong_traces
from benchmark.studies.wrong_traces import entry_len, record_kind, spoil, verdict
from sgl_dynts.demo.ledger import make_problem, record

PROBLEM = make_problem(3)


@pytest.mark.parametrize("seed", range(5))
def test_a_spoilt_entry_is_the_reference_but_for_its_value(seed):
    problem = make_problem(seed)
    right, wrong, corrected = (spoil(problem, case) for case in ("right", "wrong", "corrected"))
    words = problem.trace.split()
    assert right.words == words[: len(right.words)]
    assert f"{right.variable} {record(right.variable, right.right)}" in problem.answer
    changed = [pair for pair in zip(right.words, wrong.words, strict=True) if pair[0] != pair[1]]
    assert changed == [
        (str(right.right), str(right.wrong)),
        (record(right.variable, right.right), record(right.variable, right.wrong)),
    ]
    assert wrong.wrong_at is not None
    assert wrong.words[wrong.wrong_at] == record(right.variable, right.wrong)
    assert corrected.words == wrong.words + right.words[-entry_len(problem) :]


def test_only_the_answer_is_read_and_only_if_there_is_one():
    spoilt = spoil(PROBLEM, "wrong")
    false, true = (record(spoilt.variable, value) for value in (spoilt.wrong, spoilt.right))
    assert verdict(spoilt, f"so {false} ;") == "other"
    assert verdict(spoilt, f"so {false} </think> {spoilt.variable} {true}") == "right"
    assert verdict(spoilt, f"so {true} </think> {spoilt.variable} {false}") == "wrong"
    assert verdict(spoilt, f"so {true} </think> {spoilt.variable}") == "other"


def test_a_record_is_wrong_if_the_reference_has_no_such_word():
    true = set(PROBLEM.trace.split())
    assert record_kind(next(word for word in true if "=" in word), true) == "right records"
    assert record_kind("a=z", true) == "wrong records"


def test_the_command_keeps_a_row_for_every_case_and_policy(monkeypatch, tmp_path):
    out = tmp_path / "wrong.json"
    monkeypatch.setattr("sys.argv", f"wrong_traces --num-problems 2 --out {out}".split())
    wrong_traces.main()
    rows = json.loads(out.read_text())
    answers = {(row["of"], row["policy"]): row for row in rows if row["study"] == "answers"}
    assert set(answers) == {
        (case, policy) for case, policies in wrong_traces.CASES.items() for policy in policies
    }
    assert all(row["right"] + row["wrong"] + row["other"] == 2 for row in answers.values())
    assert answers["right", "full"]["right"] == answers["wrong", "full"]["wrong"] == 2
    ranks = [row for row in rows if row["study"] == "scores"]
    assert ranks
    assert all(0 <= row["mean_percentile"] <= 100 for row in ranks)
