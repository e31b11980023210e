"""Files of reasoning traces: JSON lines with token ids, written one by one and read with checks.

The first line is the header, every other line one trace; `training/README.md` documents the fields.
Needs neither torch nor a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from sgl_dynts.tasks.json_lines import (
    LineError,
    check_fields,
    drop_unfinished_line,
    parse_object,
    read_lines,
)

FORMAT = "dynts-traces-1"


def fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Return 16 hex digits that tell one vocabulary (token text to id) from another.

    SHA-256 over the sorted pairs, so that it does not depend on how the tokenizer is stored.
    """
    pairs = json.dumps(sorted(vocabulary.items()), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(pairs.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TraceHeader:
    """What all traces of a file have in common.

    ``model`` names who wrote them, ``tokenizer`` is the `fingerprint` of what the ids mean, and
    ``sampling`` holds the parameters of generation.
    """

    model: str
    tokenizer: str
    sampling: dict[str, Any]

    def to_line(self) -> str:
        """Return the file's first line."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_line(cls, line: str, place: str) -> Self:
        """Parse the first line.

        Raises:
            LineError: it is no header of this format.
        """
        found = parse_object(line, place)
        if found.get("format") != FORMAT:
            raise LineError(
                f"{place}: format={found.get('format')!r}, not {FORMAT!r}; is this a file of traces?"
            )
        check_fields(found, HEADER_FIELDS, {}, place)
        return cls(found["model"], found["tokenizer"], found["sampling"])


@dataclass(frozen=True)
class Trace:
    """One answered question; ids are the tokenizer's.

    ``thinking`` is [start, end) in ``output_ids``, without the markers around it. ``critical`` holds
    positions in ``output_ids`` that the generator of the problem knows to matter, None where it does
    not know. ``problem`` is an id that no other question has.
    """

    problem: str
    task: str
    question: str
    prompt_ids: list[int]
    output_ids: list[int]
    thinking: tuple[int, int]
    answer: str
    correct: bool
    critical: list[int] | None = None
    retokenized: bool = False
    """The server gave text alone, so ``output_ids`` are the tokenizer's for it, not the model's own."""

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return len(self.prompt_ids) + len(self.output_ids)

    def to_line(self) -> str:
        """Return one line, without fields that say nothing."""
        values = asdict(self)
        values = {
            name: value
            for name, value in values.items()
            if name not in OPTIONAL or value not in (None, False)
        }
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str, place: str, max_len: int | None = None) -> Self:
        """Parse and check one line.

        Raises:
            LineError: a field is missing, of the wrong kind, or says what cannot be.
        """
        found = parse_object(line, place)
        check_fields(found, REQUIRED, OPTIONAL, place)
        trace = cls(**{**found, "thinking": tuple(found["thinking"])})
        trace.check(place, max_len)
        return trace

    def check(self, place: str, max_len: int | None = None) -> None:
        """Refuse a trace that says what cannot be, or that is longer than `max_len` tokens.

        Raises:
            LineError: begins with `place`.
        """
        ids = [*self.prompt_ids, *self.output_ids, *self.thinking, *(self.critical or ())]
        if not all(type(number) is int and number >= 0 for number in ids):
            raise LineError(f"{place}: ids and positions must be integers from 0 on")
        if len(self.thinking) != 2 or not self.thinking[0] < self.thinking[1]:
            raise LineError(
                f"{place}: thinking={list(self.thinking)} holds no token; "
                "it is [start, end) in output_ids; leave traces without thinking out"
            )
        if self.thinking[1] >= len(self.output_ids):
            raise LineError(
                f"{place}: thinking={list(self.thinking)}, but output_ids has {len(self.output_ids)} "
                "tokens: nothing follows the thinking; leave the trace out"
            )
        if self.critical and max(self.critical) >= len(self.output_ids):
            raise LineError(
                f"{place}: critical={max(self.critical)} is behind the last of "
                f"{len(self.output_ids)} output_ids"
            )
        if max_len is not None and self.length > max_len:
            raise LineError(
                f"{place}: {self.length} tokens, but the model takes {max_len} "
                "(max_position_embeddings); leave the trace out or lower --max-new-tokens"
            )


HEADER_FIELDS = {"format": str, "model": str, "tokenizer": str, "sampling": dict}
REQUIRED = {
    **{"problem": str, "task": str, "question": str, "answer": str},
    **{"prompt_ids": list, "output_ids": list, "thinking": list, "correct": bool},
}
OPTIONAL = {"critical": list, "retokenized": bool}


def read_header(path: Path) -> TraceHeader:
    """Return a file's header.

    Raises:
        LineError: the file is empty or begins with something else.
    """
    place, line = next(read_lines(path), (f"{path}:1", ""))
    return TraceHeader.from_line(line, place)


def read_traces(
    path: Path,
    *,
    tokenizer: str | None = None,
    max_len: int | None = None,
    wrong_too: bool = False,
    skipped: list[str] | None = None,
) -> Iterator[Trace]:
    """Yield the traces of a file, one at a time, in its order.

    Args:
        path: of the file.
        tokenizer: `fingerprint` of the vocabulary that the traces are for; None accepts any.
        max_len: tokens that the model takes, its ``max_position_embeddings``; None accepts all.
        wrong_too: give traces with a wrong answer as well.
        skipped: messages of lines that cannot be used are added here and reading goes on; without
            it the first of them ends the reading.

    Raises:
        LineError: another tokenizer, no header, or a line that cannot be used.
    """
    found = read_header(path)
    if tokenizer is not None and found.tokenizer != tokenizer:
        raise LineError(
            f"{path}:1: tokenizer={found.tokenizer} of {found.model!r} is not this model's, {tokenizer}; "
            "generate traces with this model, or name the model that they were generated with"
        )
    for place, line in islice(read_lines(path), 1, None):
        try:
            trace = _usable(line, place, max_len)
        except LineError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        if trace.correct or wrong_too:
            yield trace


class TraceWriter:
    """Adds traces to a file, each on disk before `add` returns; an existing file is continued.

    A last line that a stopped run left unfinished is removed first.

    Raises:
        LineError: the file that is there has another header.
    """

    def __init__(self, path: Path, header: TraceHeader) -> None:
        drop_unfinished_line(path)
        if path.exists() and path.stat().st_size:
            _check_same(path, read_header(path), header)
            self._file = path.open("a", encoding="utf-8")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self._write(header.to_line())

    def add(self, trace: Trace) -> None:
        """Write one trace."""
        self._write(trace.to_line())

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()


def _usable(line: str, place: str, max_len: int | None) -> Trace:
    if not line.endswith("\n"):
        raise LineError(
            f"{place}: the last line has no end: its run was stopped while writing it; "
            "run that command again, or remove the line"
        )
    return Trace.from_line(line, place, max_len)


def _check_same(path: Path, found: TraceHeader, wanted: TraceHeader) -> None:
    for name, value in asdict(wanted).items():
        if getattr(found, name) != value:
            raise LineError(
                f"{path}:1: {name}={getattr(found, name)!r} there, {value!r} now; "
                "give the same to continue the file, or another --out"
            )
