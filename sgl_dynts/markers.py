"""Markers of thinking as tokens spell them: in tokens of their own, or merged with what stands around."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BYTES_OF_THEMSELVES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""What byte-level vocabularies write as it is; the other bytes are counted on from U+0100."""
SPACE_OF_SENTENCEPIECE = "\u2581"


@dataclass(frozen=True)
class Marker:
    """A marker, by what each token does to the part of it that is there already.

    A state counts characters of the marker, or ids of one that is told by its ids; at ``length`` it is
    complete. ``steps`` maps a token to the states that follow the states 0 to length - 1; after any other
    token the state is 0. ``ids`` are those of a marker without other spellings.
    """

    length: int
    steps: Mapping[int, tuple[int, ...]]
    ids: tuple[int, ...] = ()

    @classmethod
    def of_ids(cls, ids: Sequence[int]) -> Marker:
        """Return a marker that is always these tokens."""
        whole = tuple(ids)
        held = [whole[:state] for state in range(len(whole))]
        steps = {token: tuple(_overlap((*part, token), whole) for part in held) for token in whole}
        return cls(len(whole), steps, whole)

    @classmethod
    def of_text(cls, text: str, pieces: Mapping[str, int]) -> Marker:
        """Return a marker in whatever tokens spell it, with more before and behind it.

        Args:
            text: of the marker, as the vocabulary spells it.
            pieces: the vocabulary, what each token spells to its id.
        """
        steps = {}
        for piece, token in pieces.items():
            if _touches(piece, text):
                after = tuple(_spelled(text[:state] + piece, text) for state in range(len(text)))
                if any(after):
                    steps[token] = after
        return cls(len(text), steps)

    def after(self, state: int, token: int) -> int:
        """Return the state after one more token."""
        step = self.steps.get(token)
        return step[state] if step else 0

    def is_complete(self, tokens: Iterable[int]) -> bool:
        """Whether tokens that begin with nothing of it have it at their end, and not before."""
        state = 0
        for token in tokens:
            if state == self.length:
                return False
            state = self.after(state, token)
        return state == self.length

    def num_tokens_before(self, tokens: Sequence[int], end: int) -> int:
        """Return how many tokens before `end` spell it, 0 if they do not."""
        most = min(end, self.length)
        return next((n for n in range(1, most + 1) if self.is_complete(tokens[end - n : end])), 0)

    def num_tokens_of_start(self, tokens: Sequence[int]) -> int:
        """Return how many tokens spell it at the very beginning, 0 if they do not."""
        state = 0
        for index, token in enumerate(tokens):
            state = self.after(state, token)
            if state in (0, self.length):
                return index + 1 if state else 0
        return 0

    def last_start(self, tokens: Sequence[int]) -> int:
        """Return the index of the first token of the last time that it is there, or -1."""
        if self.steps.keys().isdisjoint(tokens):  # at C speed, which spares most prompts the loop
            return -1
        state, last = 0, -1
        for index, token in enumerate(tokens):
            state = self.after(state % self.length, token)
            if state == self.length:
                last = index + 1
        return last - self.num_tokens_before(tokens, last) if last > 0 else -1


def find_marker(tokenizer: Any, text: str, ids: Sequence[int]) -> Marker:
    r"""Return the marker that a tokenizer makes of a text.

    A token that was added to the vocabulary never merges. Pieces of a byte-level or sentencepiece one do:
    ``</think>\n\n`` may be the tokens ``</``, ``think`` and ``>\n\n``, and its own last one never comes.

    Args:
        tokenizer: of transformers.
        text: of the marker.
        ids: what it encodes to.
    """
    spelled = "".join(tokenizer.convert_ids_to_tokens(list(ids)))
    spelling = next((how for how in (_plain, _by_bytes, _by_spaces) if how(text) == spelled), None)
    is_added = set(ids) <= set(tokenizer.get_added_vocab().values())
    if spelling is None or is_added or not joins_tokens(tokenizer, text, ids):
        return Marker.of_ids(ids)
    found = Marker.of_text(spelling(text).removeprefix(SPACE_OF_SENTENCEPIECE), tokenizer.get_vocab())
    return found if found.steps.keys() - set(ids) else Marker.of_ids(ids)


def find_beginning(tokenizer: Any, text: str, joins: bool) -> Marker | None:
    """Return the marker of a text that a token may go on from, None where nothing spells it.

    Args:
        tokenizer: of transformers.
        text: ASCII; a token that begins with it counts, ``<tool_calls>`` for ``<tool_call``.
        joins: whether its tokens stand side by side, so that several may spell it (`joins_tokens`).
    """
    vocabulary = tokenizer.get_vocab()
    whole = {token: (1,) for piece, token in vocabulary.items() if piece.startswith(text)}
    if whole:
        return Marker(1, whole)
    return Marker.of_text(text, vocabulary) if joins else None


def joins_tokens(tokenizer: Any, text: str, ids: Sequence[int]) -> bool:
    """Whether tokens stand side by side in a text, rather than as words with spaces between.

    Args:
        tokenizer: of transformers.
        text: any.
        ids: what it encodes to.
    """
    begins = tokenizer.convert_ids_to_tokens(list(ids))[0]
    return begins.startswith(SPACE_OF_SENTENCEPIECE) or tokenizer.decode([*ids, *ids]) == text + text


def _plain(text: str) -> str:
    return text


def _by_bytes(text: str) -> str:
    """Return a text as byte-level vocabularies spell it, a character for each byte of UTF-8."""
    others = [byte for byte in range(256) if byte not in BYTES_OF_THEMSELVES]
    return "".join(
        chr(byte if byte in BYTES_OF_THEMSELVES else 0x100 + others.index(byte)) for byte in text.encode()
    )


def _by_spaces(text: str) -> str:
    """Return a text as sentencepiece spells it at the beginning of a text."""
    return SPACE_OF_SENTENCEPIECE + text.replace(" ", SPACE_OF_SENTENCEPIECE)


def _touches(piece: str, text: str) -> bool:
    """Whether a piece may hold a part of a text, told fast."""
    return piece[:1] in text or text[:1] in piece


def _spelled(held: str, text: str) -> int:
    """Return how much of a text is at the end of what is held, all of it if it is anywhere in it."""
    if text in held:
        return len(text)
    return next((n for n in range(min(len(held), len(text)), 0, -1) if held.endswith(text[:n])), 0)


def _overlap(held: tuple[int, ...], whole: tuple[int, ...]) -> int:
    """Return how many of a marker's first ids the held ones end with."""
    return next((n for n in range(len(held), 0, -1) if held[-n:] == whole[:n]), 0)
