"""Which generated tokens are thinking, decided from token ids alone."""

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ThinkMarkers:
    """Token ids that open and close thinking; each marker is one token or several.

    Raises:
        ValueError: a marker is empty, or one begins with the other, so that they cannot be told apart.
    """

    opening: tuple[int, ...]
    closing: tuple[int, ...]

    def __post_init__(self) -> None:
        shorter = min(len(self.opening), len(self.closing))
        if self.opening[:shorter] == self.closing[:shorter]:
            raise ValueError(
                f"think markers {list(self.opening)} and {list(self.closing)}: one begins with the "
                "other; name distinct ones with --dynts-think-start and --dynts-think-end"
            )

    def starts_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether the first generated token thinks: the prompt's last marker is not a closing one."""
        closed = _last_index(prompt, self.closing)
        return closed < 0 or _last_index(prompt, self.opening) > closed


@dataclass
class ThinkingTracker:
    """Splits one request's generated tokens into thinking and answer, as they come.

    Generation thinks until ``closing`` is complete: its last token is the first of the answer. A later
    ``opening``, itself answer to its last token, makes what follows it thinking again. So a token's
    kind is settled when it is seen and never changes.
    """

    markers: ThinkMarkers
    thinking: bool
    num_seen: int = 0
    answer_len: int = 0
    answer_spans: list[tuple[int, int]] = field(default_factory=list)
    """Half-open ranges of answer tokens, counted from the first generated token."""
    _tail: tuple[int, ...] = ()

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in the next generated tokens; those that end no marker are passed over at C speed."""
        start = 0
        while start < len(tokens):
            end = _find(tokens, self._marker[-1], start)
            self._pass(tokens, start, end)
            if end < len(tokens):
                self._advance_one(tokens[end])
            start = end + 1

    @property
    def _marker(self) -> tuple[int, ...]:
        return self.markers.closing if self.thinking else self.markers.opening

    def _pass(self, tokens: Sequence[int], start: int, end: int) -> None:
        """Take in ``tokens[start:end]``, none of which is a marker's last token."""
        self.num_seen += end - start
        if not self.thinking:
            self._add_answer(end - start)
        self._remember(tokens[max(start, end - len(self._marker)) : end])

    def _advance_one(self, token: int) -> None:
        self.num_seen += 1
        self._remember((token,))
        is_marker = self._tail == self._marker
        if is_marker or not self.thinking:
            self._add_answer(1)
        if is_marker:
            self.thinking = not self.thinking
            self._tail = ()

    def _remember(self, tokens: Sequence[int]) -> None:
        self._tail = (*self._tail, *tokens)[-len(self._marker) :]

    def _add_answer(self, count: int) -> None:
        """Count the newest ``count`` tokens as answer."""
        if not count:
            return
        start = self.num_seen - count
        self.answer_len += count
        if self.answer_spans and self.answer_spans[-1][1] == start:
            self.answer_spans[-1] = (self.answer_spans[-1][0], self.num_seen)
        else:
            self.answer_spans.append((start, self.num_seen))


def _find(tokens: Sequence[int], token: int, start: int) -> int:
    """Index of the first ``token`` from ``start`` on, or the length of ``tokens``."""
    if isinstance(tokens, array):  # whose own index() makes an object of every element
        return _find_in_array(tokens, token, start)
    try:
        return tokens.index(token, start)
    except ValueError:
        return len(tokens)


def _find_in_array(tokens: array, token: int, start: int) -> int:
    lowest_byte = 0 if sys.byteorder == "little" else tokens.itemsize - 1
    lowest = tokens.tobytes()[lowest_byte :: tokens.itemsize]
    at = lowest.find(token & 255, start)
    while at >= 0 and tokens[at] != token:
        at = lowest.find(token & 255, at + 1)
    return len(tokens) if at < 0 else at


def _last_index(tokens: Sequence[int], marker: tuple[int, ...]) -> int:
    """Index where the last whole ``marker`` starts in ``tokens``, or -1."""
    if marker[0] not in tokens:  # at C speed, which spares most long prompts the loop below
        return -1
    for start in range(len(tokens) - len(marker), -1, -1):
        if tokens[start] == marker[0] and tuple(tokens[start : start + len(marker)]) == marker:
            return start
    return -1
