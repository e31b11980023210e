"""Problems to put to a model, and files of them: one JSON object a line.

`tasks/README.md` documents the fields; generators write the same format. Needs neither torch nor a
model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TextIO

from sgl_dynts.tasks.json_lines import LineError, check_fields, parse_object, read_lines

SPLITS = {
    "train": range(0, 10**9),
    "validation": range(10**9, 2 * 10**9),
    "test": range(2 * 10**9, 3 * 10**9),
}
"""Seeds of generated problems; no two splits share one."""
REQUIRED = {"question": str, "answer": str}
OPTIONAL = {
    **{"id": str, "task": str, "grader": str, "trace": str},
    **{"choices": list, "critical": list, "tests": str, "entry_point": str},
}


@dataclass(frozen=True)
class Problem:
    """One question whose answer can be checked.

    ``grader`` names who judges (`graders.GRADERS`). ``choices`` are the texts of a multiple-choice
    question, in the order of their letters. ``trace`` is a reference solution and ``critical`` the texts
    in it that a reader must hold until they are read again, where a generator knows. ``tests`` and
    ``entry_point`` check a program: code that defines ``check(function)``, and the function's name.
    """

    id: str
    task: str
    question: str
    answer: str
    grader: str = "exact"
    choices: tuple[str, ...] = ()
    trace: str = ""
    critical: tuple[str, ...] | None = None
    tests: str = ""
    entry_point: str = ""

    def to_line(self) -> str:
        """Return one line, without fields that are as by default."""
        defaults = {field.name: field.default for field in fields(self)}
        values = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        return json.dumps(values, ensure_ascii=False)


def read_problems(path: Path, grader: str | None = None, task: str | None = None) -> list[Problem]:
    """Return the problems of a file.

    Args:
        path: of the file.
        grader: who judges those that do not say; None is ``exact``.
        task: name of the task of those that do not say; None is the file's name.

    Raises:
        LineError: a line that cannot be used, two problems with one id, or no problem at all.
        OSError: the file cannot be read.
    """
    problems: dict[str, Problem] = {}
    for number, (place, line) in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        default = Problem(f"{path.stem}-{number}", task or path.stem, "", "", grader or "exact")
        problem = _from_line(line, place, default)
        if problem.id in problems:
            raise LineError(f"{place}: id {problem.id!r} is an earlier line's; give each its own")
        problems[problem.id] = problem
    if not problems:
        raise LineError(f"{path}: no problem in it; one JSON object a line is expected")
    return list(problems.values())


def write_problems(file: TextIO, problems: Iterable[Problem]) -> None:
    """Write problems, one a line."""
    for problem in problems:
        file.write(problem.to_line() + "\n")


def seeds_of(split: str, count: int) -> Iterator[int]:
    """Give the first seeds of a split."""
    return iter(SPLITS[split][:count])


def _from_line(line: str, place: str, default: Problem) -> Problem:
    found = parse_object(line, place)
    if found.get("critical", ()) is None:
        del found["critical"]
    check_fields(found, REQUIRED, OPTIONAL, place)
    for name in ("choices", "critical"):
        if name in found:
            found[name] = tuple(found[name])
            if not all(isinstance(text, str) for text in found[name]):
                raise LineError(f"{place}: {name} must hold texts only")
    if not found["question"].strip() or not found["answer"].strip():
        raise LineError(f"{place}: question and answer must not be empty")
    return replace(default, **found)
