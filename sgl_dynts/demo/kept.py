"""What is shown of an answer in words: its lines while it grows, and how much of each word was kept."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from sgl_dynts.demo.serving import Reply

LINE = 68
"""Characters of a line of a growing answer."""
WIDTH = 88
"""Characters of a line of words with their marks."""
ALL, NONE = "#", "."
NEARLY_NONE = 0.05
"""Of all heads; a word that fewer hold counts as held by none."""


@dataclass(frozen=True)
class Word:
    """A word, and the share of all layers and KV heads that hold its tokens, their mean."""

    text: str
    share: float

    @property
    def mark(self) -> str:
        """Tenths of the heads: 1 to 9, `#` for all, `.` for none."""
        if self.share == 1:
            return ALL
        return NONE if self.share < NEARLY_NONE else str(min(9, max(1, round(10 * self.share))))


def lines_of(reply: Reply) -> list[str]:
    """Return an answer's lines that grow no further."""
    lines = [line for part in reply.text.splitlines() for line in textwrap.wrap(part, LINE)]
    return lines if reply.meta["finish_reason"] else lines[:-1]


def paragraphs_of(pieces: Iterable[str], shares: Iterable[float]) -> list[list[Word]]:
    """Put the texts of tokens together to words.

    Args:
        pieces: a token's text each, with the space or line break before it.
        shares: of each token, of all layers and KV heads that hold it.
    """
    paragraphs: list[list[list[tuple[str, float]]]] = [[]]
    apart = True
    for piece, share in zip(pieces, shares, strict=True):
        body = piece.strip()
        before, _, after = piece.partition(body) if body else (piece, "", "")
        if "\n" in before:
            paragraphs.append([])
        if body and (apart or before or not paragraphs[-1]):
            paragraphs[-1].append([])
        if body:
            paragraphs[-1][-1].append((body, share))
        if "\n" in after:
            paragraphs.append([])
        apart = bool(after) or not body
    return [[_word(parts) for parts in words] for words in paragraphs if words]


def _word(parts: Sequence[tuple[str, float]]) -> Word:
    return Word("".join(text for text, _ in parts), fmean(share for _, share in parts))


def marked(words: Iterable[Word]) -> list[str]:
    """Return lines of words, below each line one of their marks."""
    lines: list[tuple[str, str]] = [("", "")]
    for word in words:
        text, marks = lines[-1]
        if text and len(text) + 1 + len(word.text) > WIDTH:
            lines.append(("", ""))
            text, marks = lines[-1]
        text, marks = (text and text + " ", marks and marks + " ")
        lines[-1] = (text + word.text, marks + word.mark.ljust(len(word.text)))
    return [part.rstrip() for line in lines for part in line]


def print_kept(pieces: Sequence[str], shares: Sequence[float]) -> None:
    """Print an answer with the mark of each word below it; arguments as of :func:`paragraphs_of`."""
    print(
        "What is held of it in the end. Below a word: how many tenths of all layers and KV heads hold it;"
    )
    print(f"{ALL} all of them, {NONE} none. The newest words are held by all.\n")
    for words in paragraphs_of(pieces, shares):
        for line in marked(words):
            print(f"  {line}")
