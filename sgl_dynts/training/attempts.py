"""What came of every attempt at a problem: the log beside a file of traces, and what to do about it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from sgl_dynts.tasks.json_lines import check_fields, drop_unfinished_line, parse_object, read_lines

RIGHT, WRONG, CUT = "right", "wrong", "cut by its length"
NOT_JUDGED = "not judged"
"""The grader came to no end; such a trace is never kept."""
DOES_NOT_THINK, NEVER_ENDS, THINKS_AGAIN = (
    "does not think",
    "never ends thinking",
    "thinks more than once",
)
REQUIRED = {"problem": str, "outcome": str}
OPTIONAL = {"output": str, "said": str}
MARKERS = (
    "name the model's own markers with --think-start and --think-end; a model without any has no thinking"
)
REMEDIES = {
    CUT: "raise --max-new-tokens, or --max-len",
    DOES_NOT_THINK: MARKERS,
    NEVER_ENDS: MARKERS,
    THINKS_AGAIN: MARKERS,
    WRONG: "read some with --log-outputs: the answers, their form or the --grader may be wrong",
    NOT_JUDGED: "read some with --log-outputs: the grader came to no end with them",
}


class Log:
    """Every attempt, one JSON object a line, so that none is made twice.

    Raises:
        LineError: a line that is there is of another form.
    """

    def __init__(self, path: Path) -> None:
        drop_unfinished_line(path)
        self.counts: Counter[str] = Counter()
        self._of_problem: defaultdict[str, list[str]] = defaultdict(list)
        for attempt in _attempts(path):
            self._note(attempt["problem"], attempt["outcome"])
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def add(self, problem: str, outcome: str, **more: str) -> None:
        """Note one attempt at the problem with this id; ``output`` and ``said`` are kept if given."""
        line = {"problem": problem, "outcome": outcome, **more}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        self._note(problem, outcome)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def outcomes(self, problem: str) -> list[str]:
        """Return what came of the attempts at the problem with this id."""
        return list(self._of_problem[problem])

    def _note(self, problem: str, outcome: str) -> None:
        self.counts[outcome] += 1
        self._of_problem[problem].append(outcome)


def log_of(traces: Path) -> Path:
    """Return the log beside a file of traces."""
    return traces.with_suffix(".log")


def why_none_is_right(traces: Path) -> str:
    """Say what came of the attempts instead, and what helps against the commonest.

    Args:
        traces: a file without right traces.

    Raises:
        LineError: a line of its log is of another form.
    """
    counts = Counter(attempt["outcome"] for attempt in _attempts(log_of(traces)))
    return advice(counts) or "it has no log beside it; make traces with sgl_dynts.training.traces"


def advice(counts: Mapping[str, int]) -> str:
    """Return what came of attempts, and what helps where none is right; empty for no attempt."""
    if not counts or counts.get(RIGHT):
        return ""
    most = max(counts, key=lambda outcome: counts[outcome])
    told = ", ".join(f"{num} {outcome}" for outcome, num in Counter(counts).most_common())
    remedy = REMEDIES.get(most)
    return f"of {sum(counts.values())} attempts {told}" + (f"; {remedy}" if remedy else "")


def _attempts(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    found = []
    for place, line in read_lines(path):
        attempt = parse_object(line, place)
        check_fields(attempt, REQUIRED, OPTIONAL, place)
        found.append(attempt)
    return found
