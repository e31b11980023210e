"""Plain texts to train on: no task, no answer, and so no grader.

Each text is cut into windows. The first tokens of a window are the question, the others thinking that
the model is forced to read, as in `benchmark.likelihood`. A window is a trace whose last token stands for
the answer: the targets that count far readers tell no difference, and the others need an answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_dynts.training.trace_file import Trace

if TYPE_CHECKING:
    from sgl_dynts.config import DynTSConfig

PATTERN = "*.txt"
TASK = "text"
LEAST_THINKING = 3
"""Tokens behind the question: two that can be ordered, and the last."""
Texts = Path | str | Iterable[Path | str]


@dataclass(frozen=True)
class TextCut:
    """How texts are cut, in tokens.

    A window has `length` tokens, a text's last one may have fewer; the first `question_len` of each are
    the question. Of a text at most the first `most` windows are taken, all where it is None.
    """

    length: int
    question_len: int = 32
    most: int | None = None

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to train on.

        Raises:
            ValueError: naming the field, its value and a remedy.
        """
        if self.question_len < 1:
            raise ValueError(f"question_len={self.question_len} must be at least 1")
        if self.length < self.question_len + LEAST_THINKING:
            raise ValueError(
                f"text_len={self.length} leaves no thinking behind question_len={self.question_len}; "
                f"raise it to {self.question_len + LEAST_THINKING} or more"
            )
        if self.most is not None and self.most < 1:
            raise ValueError(f"per_text={self.most} must be at least 1; leave it out to take all windows")


def default_length(windows: DynTSConfig, max_len: int) -> int:
    """Return how long windows are cut where nobody says: two budgets, or what the model takes."""
    return min(2 * windows.budget, max_len)


def text_traces(texts: Texts, tokenizer: Any, cut: TextCut) -> list[Trace]:
    """Return the windows of texts as traces; those of one text have the same ``problem``.

    Args:
        texts: a file or a folder (all its `*.txt`, those of folders in it too), by path; or several
            of them and texts at hand. In a sequence a str is a text itself and a Path a place.
        tokenizer: of the model. Where it begins a text with tokens of its own, each window has them.
        cut: of the texts.

    Raises:
        ValueError: no text is there, or one is not UTF-8; names it.
    """
    prefix = list(tokenizer("").input_ids)
    traces = [
        trace
        for text in _read(texts)
        for trace in _windows(tokenizer(text, verbose=False).input_ids, prefix, cut)
    ]
    if not traces:
        raise ValueError(
            f"texts: none has more than {cut.question_len + LEAST_THINKING - 1} tokens; give longer ones"
        )
    return traces


def _windows(ids: Sequence[int], prefix: list[int], cut: TextCut) -> Iterator[Trace]:
    """Cut one text; what is left in the end and is too short is left out."""
    own = ids[len(prefix) :] if list(ids[: len(prefix)]) == prefix else ids
    text = hashlib.sha256(json.dumps(list(own)).encode()).hexdigest()
    step = cut.length - len(prefix)
    for start in islice(range(0, len(own), step), cut.most):
        window = [*prefix, *own[start : start + step]]
        if len(window) >= cut.question_len + LEAST_THINKING:
            question, rest = window[: cut.question_len], window[cut.question_len :]
            yield Trace(text, TASK, "", question, rest, (0, len(rest) - 2), "", correct=True)


def _read(texts: Texts) -> Iterator[str]:
    if isinstance(texts, Path | str):
        yield from map(_content, _files(Path(texts)))
        return
    for one in texts:
        if isinstance(one, str):
            yield one
        else:
            yield from map(_content, _files(one))


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    files = sorted(place.rglob(PATTERN))
    if not files:
        raise ValueError(f"{place}: no file {PATTERN} in it; name a folder with plain texts, or files")
    return files


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error.reason}); give plain texts in UTF-8") from error
