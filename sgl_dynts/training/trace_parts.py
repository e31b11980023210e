"""Where the parts of a generated trace are: its one thinking part, its answer, its critical tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgl_dynts.thinking import ThinkingTracker, ThinkMarkers
from sgl_dynts.training.attempts import DOES_NOT_THINK, NEVER_ENDS, THINKS_AGAIN


class NoTrace(ValueError):  # noqa: N818  an outcome to count rather than a fault
    """An output that is no trace to train on; the message is the reason in a few words."""


@dataclass(frozen=True)
class Parts:
    """Half-open ranges of output tokens; the closing marker stands between the two."""

    thinking: tuple[int, int]
    answer: tuple[int, int]


def find_parts(prompt: Sequence[int], output: Sequence[int], markers: ThinkMarkers) -> Parts:
    """Return the parts of an output that thinks exactly once and then answers.

    An opening marker at the output's very beginning belongs to no part.

    Args:
        prompt: token ids.
        output: token ids.
        markers: of the model.

    Raises:
        NoTrace: the output does anything else.
    """
    tracker = ThinkingTracker(markers, markers.starts_thinking(prompt))
    tracker.advance(output)
    start = max(marker.num_tokens_of_start(output) for marker in markers.opens)
    if not markers.starts_thinking(prompt) and tracker.answer_spans == [(0, len(output))]:
        raise NoTrace(DOES_NOT_THINK)
    if not tracker.answer_spans:
        raise NoTrace(NEVER_ENDS)
    answer_start = tracker.answer_spans[0][0] + 1
    lengths = [marker.num_tokens_before(output, answer_start) for marker in markers.closes]
    end = answer_start - min(filter(None, lengths), default=0)
    if len(tracker.answer_spans) > 1 or tracker.thinking or _holds(output[start:], markers):
        raise NoTrace(THINKS_AGAIN)
    if end <= start:
        raise NoTrace("empty thinking")
    return Parts((start, end), (answer_start, len(output)))


def critical_positions(
    tokenizer: Any, output: Sequence[int], thinking: tuple[int, int], texts: Sequence[str]
) -> list[int] | None:
    """Return the output tokens that hold the first place of each text within the thinking.

    Args:
        tokenizer: a fast one of transformers.
        output: token ids.
        thinking: [start, end) of them.
        texts: whole words; spaces between them match any.

    Returns:
        Ascending positions, or None where the tokenizer does not give the output back from its own text,
        so that nobody can say which characters a token stands for.
    """
    first, last = thinking
    part = list(output[first:last])
    text = tokenizer.decode(part)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if encoded["input_ids"] != part:
        return None
    found: set[int] = set()
    for wanted in texts:
        words = r"\s+".join(map(re.escape, wanted.split()))
        match = re.search(rf"(?<!\S){words}(?!\S)", text)
        if match is not None:
            spans = enumerate(encoded["offset_mapping"], start=first)
            found.update(at for at, (a, b) in spans if a < match.end() and b > match.start())
    return sorted(found)


def _holds(tokens: Sequence[int], markers: ThinkMarkers) -> bool:
    """Whether an opening marker is anywhere in tokens."""
    return any(marker.last_start(tokens) >= 0 for marker in markers.opens)
