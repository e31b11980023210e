"""Traces come back as they were written, and whatever is wrong with a file is said with its line."""

import json
from dataclasses import replace

import pytest

from sgl_dynts.tasks.json_lines import LineError
from sgl_dynts.training.trace_file import (
    Trace,
    TraceHeader,
    TraceWriter,
    fingerprint,
    read_header,
    read_traces,
)

HEADER = TraceHeader("org/model", fingerprint({"a": 0, "b": 1}), {"temperature": 0.6})
TRACE = Trace("p1", "sums", "1+1?", [1, 2], [3, 4, 5, 6], (0, 2), "2", True)
MARKED = replace(TRACE, problem="p2", correct=False, critical=[1], retokenized=True)
NOTHING_MATTERS = replace(TRACE, problem="p3", critical=[])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "traces.jsonl"
    with TraceWriter(path, HEADER) as writer:
        writer.add(TRACE)
        writer.add(MARKED)
    return path


def spoil(path, **fields):
    """Change fields of the second trace, line 3; None removes one."""
    lines = path.read_text().splitlines()
    values = {**json.loads(lines[2]), **fields}
    lines[2] = json.dumps({name: value for name, value in values.items() if value is not None})
    path.write_text("\n".join([*lines, lines[1]]) + "\n")


def test_traces_come_back_as_they_were_written(path):
    assert read_header(path) == HEADER
    assert list(read_traces(path, wrong_too=True, tokenizer=HEADER.tokenizer)) == [TRACE, MARKED]


def test_no_critical_token_is_not_the_same_as_nobody_knows(path):
    assert Trace.from_line(NOTHING_MATTERS.to_line(), "here") == NOTHING_MATTERS


def test_wrong_traces_are_given_on_request_only(path):
    assert list(read_traces(path)) == [TRACE]


def test_a_file_is_continued_and_an_unfinished_line_removed(path):
    with path.open("a") as file:
        file.write('{"problem": "p3", "ta')
    with TraceWriter(path, HEADER) as writer:
        writer.add(replace(TRACE, problem="p4"))
    found = [trace.problem for trace in read_traces(path, wrong_too=True)]
    assert found == ["p1", "p2", "p4"]


def test_a_file_of_another_model_is_not_continued(path):
    with pytest.raises(LineError, match=r"traces.jsonl:1: model='org/model' there, 'other' now"):
        TraceWriter(path, replace(HEADER, model="other"))


def test_another_tokenizer_is_found(path):
    with pytest.raises(LineError, match=r"traces.jsonl:1: tokenizer=.* is not this model's, abc"):
        list(read_traces(path, tokenizer="abc"))


def test_a_fingerprint_depends_on_words_and_ids_and_not_on_their_order():
    assert fingerprint({"a": 0, "b": 1}) == fingerprint({"b": 1, "a": 0})
    assert fingerprint({"a": 0, "b": 1}) != fingerprint({"a": 1, "b": 0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": None}, "field 'question' is missing"),
        ({"colour": 1}, "field 'colour' is unknown"),
        ({"prompt_ids": "1 2"}, "prompt_ids is str, list is expected"),
        ({"critical": 3}, "critical is int, list is expected"),
        ({"output_ids": [3, -4, 5, 6]}, "integers from 0 on"),
        ({"output_ids": [3, 4.5, 5, 6]}, "integers from 0 on"),
        ({"thinking": [2, 2]}, "thinking=\\[2, 2\\] holds no token"),
        ({"thinking": [0, 4]}, "nothing follows the thinking"),
        ({"critical": [4]}, "critical=4 is behind the last of 4 output_ids"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(path, fields, message):
    spoil(path, **fields)
    with pytest.raises(LineError, match=f"traces.jsonl:3: .*{message}"):
        list(read_traces(path))
    skipped: list[str] = []
    assert len(list(read_traces(path, skipped=skipped))) == 2
    assert len(skipped) == 1


def test_a_trace_that_is_too_long_for_the_model_is_refused(path):
    assert list(read_traces(path, max_len=6)) == [TRACE]
    with pytest.raises(LineError, match=r"traces.jsonl:2: 6 tokens, but the model takes 5"):
        list(read_traces(path, max_len=5))


@pytest.mark.parametrize("text", ["", "nonsense\n", "[1]\n", '{"format": "other"}\n'])
def test_a_file_without_a_header_is_refused(tmp_path, text):
    path = tmp_path / "some.jsonl"
    path.write_text(text)
    with pytest.raises(LineError, match=r"some.jsonl:1: "):
        list(read_traces(path))


def test_a_line_without_an_end_is_refused(path):
    path.write_text(path.read_text().rstrip("\n"))
    with pytest.raises(LineError, match=r"traces.jsonl:3: the last line has no end"):
        list(read_traces(path))
