"""Where a question ends and which tokens after it are thinking, decided from token ids alone."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sgl_dynts.markers import Marker


@dataclass(frozen=True)
class ThinkMarkers:
    """Token ids that open and close thinking; each marker is one token or several.

    ``openers`` and ``closers`` say how tokens spell the markers where that may be otherwise than by these
    ids, or by several of them. ``interrupts`` end thinking too, where it is written: a call of a tool.
    ``control`` are ids that stand between the turns of a chat, the markers not among them. A model
    without markers has empty ones: all that it generates is thinking.

    Raises:
        ValueError: a marker is empty, or one begins with the other, so that they cannot be told apart.
    """

    opening: tuple[int, ...]
    closing: tuple[int, ...]
    openers: tuple[Marker, ...] = ()
    closers: tuple[Marker, ...] = ()
    interrupts: tuple[Marker, ...] = ()
    control: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        shorter = min(len(self.opening), len(self.closing))
        if self.there_are and self.opening[:shorter] == self.closing[:shorter]:
            raise ValueError(
                f"think markers {list(self.opening)} and {list(self.closing)}: one begins with the "
                "other; name distinct ones with --dynts-think-start and --dynts-think-end"
            )

    @property
    def there_are(self) -> bool:
        """Whether the model marks its thinking."""
        return bool(self.opening or self.closing)

    @cached_property
    def opens(self) -> tuple[Marker, ...]:
        """What begins thinking."""
        return self.openers or self._alone(self.opening)

    @cached_property
    def closes(self) -> tuple[Marker, ...]:
        """What ends thinking, in a prompt too."""
        return self.closers or self._alone(self.closing)

    def _alone(self, ids: tuple[int, ...]) -> tuple[Marker, ...]:
        return (Marker.of_ids(ids),) if self.there_are else ()

    @cached_property
    def phases(self) -> tuple[Phase, Phase]:
        """What to look for in an answer, and in thinking."""
        return Phase.of(self.opens), Phase.of((*self.closes, *self.interrupts))

    def starts_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether the first generated token thinks: the prompt's last marker is not a closing one."""
        if not self.there_are:
            return True
        closed = max(marker.last_start(prompt) for marker in self.closes)
        return closed < 0 or max(marker.last_start(prompt) for marker in self.opens) > closed

    def question_len(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that are question; what follows them is thinking that is to be continued.

        Where another turn begins behind the opening marker, the marker is a word of an earlier one.
        """
        if not self.there_are:
            return len(prompt)
        marker = max(self.opens, key=lambda one: one.last_start(prompt))
        opened = marker.last_start(prompt)
        if opened < 0 or max(one.last_start(prompt) for one in self.closes) > opened:
            return len(prompt)
        end = opened + marker.num_tokens_of_start(prompt[opened:])
        return len(prompt) if self.control.intersection(prompt[end:]) else end


@dataclass(frozen=True)
class Phase:
    """The markers that may end thinking, or an answer, and the tokens that any of them has."""

    markers: tuple[Marker, ...]
    tokens: frozenset[int]

    @classmethod
    def of(cls, markers: tuple[Marker, ...]) -> Phase:
        """Return the phase that these markers end."""
        return cls(markers, frozenset(token for marker in markers for token in marker.steps))


@dataclass
class ThinkingTracker:
    """Splits the tokens after one request's question into thinking and answer, as they come.

    They are thinking until a closing marker is complete: its last token is the first of the answer. A
    later opening one, itself answer to its last token, makes what follows it thinking again. So a token's
    kind is settled when it is seen and never changes.
    """

    markers: ThinkMarkers
    thinking: bool
    num_seen: int = 0
    answer_len: int = 0
    answer_spans: list[tuple[int, int]] = field(default_factory=list)
    """Half-open ranges of answer tokens, counted from the first after the question."""
    _states: tuple[int, ...] = ()
    """How much of each marker that may come is there."""

    def __post_init__(self) -> None:
        self._states = (0,) * len(self._phase.markers)

    def advance(self, tokens: Sequence[int]) -> None:
        """Take in the next tokens; those that no marker has are passed over fast."""
        start = 0
        while start < len(tokens):
            end = _find_any(tokens, self._phase.tokens, start)
            if end > start:
                self._pass(end - start)
            if end < len(tokens):
                self._advance_one(tokens[end])
            start = end + 1

    @property
    def _phase(self) -> Phase:
        return self.markers.phases[self.thinking]

    def _pass(self, count: int) -> None:
        """Take in tokens that no marker has."""
        self.num_seen += count
        self._states = (0,) * len(self._states)
        if not self.thinking:
            self._add_answer(count)

    def _advance_one(self, token: int) -> None:
        self.num_seen += 1
        markers = self._phase.markers
        before = zip(markers, self._states, strict=True)
        self._states = tuple(marker.after(state, token) for marker, state in before)
        lengths = (marker.length for marker in markers)
        is_marker = any(state == length for state, length in zip(self._states, lengths, strict=True))
        if is_marker or not self.thinking:
            self._add_answer(1)
        if is_marker:
            self.thinking = not self.thinking
            self._states = (0,) * len(self._phase.markers)

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


def _find_any(tokens: Sequence[int], wanted: frozenset[int], start: int) -> int:
    """Index of the first token from ``start`` on that is wanted, or the length of ``tokens``."""
    if not wanted:
        return len(tokens)
    if len(wanted) == 1:
        return _find(tokens, next(iter(wanted)), start)
    return next((at for at in range(start, len(tokens)) if tokens[at] in wanted), len(tokens))


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
