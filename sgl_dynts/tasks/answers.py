r"""Where a text says its answer: its boxes, its answer line.

What stands here takes a time that grows with the text, not with its square.
"""

import re
import unicodedata
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass

from sgl_dynts.tasks.marks import MARK, correction, without_mark

BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
MOST_BOXES_IN_A_BOX = 3
BARE_ARGUMENT = re.compile(r"\\[A-Za-z]+|\w+")
"""What a command without braces takes, and a little more: a whole number rather than its first digit."""
BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&\u3001]|\\[()\[\],;:! ]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b"
    r"|[和或及与])*"
    r"(?:[A-Za-z](?:_\w)?\s*=\s*)?"
)
"""What stands between two boxes of one answer, ``\boxed{1}, x = \boxed{2}``."""
AROUND_A_LINE = " \t\r\n*_#`"
OPENS_A_FORMULA = ("", "$", "$$", "\\[", "\\(")
SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
FRACTION = re.compile("[¼-¾⅐-⅞]")
SPELLINGS = str.maketrans("\u2212\u2010\u2011\u2013\u2018\u2019\u201c\u201d", "----''\"\"")
"""Dashes and quotation marks to those of a keyboard."""
SETS = str.maketrans(
    {
        letter: rf"\mathbb{{{unicodedata.normalize('NFKC', letter)}}}"
        for letter in "\u2102\u2115\u211a\u211d\u2124"
    }
)
"""Sets of numbers to LaTeX's, before they would become plain letters."""


@dataclass(frozen=True)
class Box:
    r"""One ``\boxed{}`` of a text: [start, end) of all of it, and what is in it."""

    start: int
    end: int
    content: str


def normalize(text: str) -> str:
    r"""Return a text with one spelling for what looks alike.

    Full-width digits and letters become plain, accents are composed, dashes are minus signs, and
    superscripts, subscripts and ``½`` are written as LaTeX has them.
    """
    text = SUPERSCRIPTS.sub(lambda found: f"^{{{_compatible(found[0])}}}", text.translate(SETS))
    text = SUBSCRIPTS.sub(lambda found: f"_{{{_compatible(found[0])}}}", text)
    text = FRACTION.sub(_fraction, text)
    return _compatible(text).translate(SPELLINGS)


def boxes(text: str) -> list[Box]:
    """Return the boxes of a text in its order, without empty ones; one within another is part of it."""
    return list(_boxes(text))


def said_answers(text: str) -> list[list[str]]:
    """Return what a text says as its answer, the likeliest first, each in one part or several.

    A later correction comes before the boxes, and these before the last "Answer:" or "answer is"; where
    there is none of them, the last line. Nothing for an empty text.
    """
    found = boxes(text)
    line = _answer_line(text, found)
    told = [[line]] if line and not BOX.search(line) else []
    if found:
        corrected = correction(text, found[-1].end)
        return [*([[corrected]] if corrected else []), _last_answer(text, found), *told]
    lines = [line for line in text.splitlines() if line.strip(AROUND_A_LINE)]
    return told or [[line.strip(AROUND_A_LINE)] for line in lines[-1:]]


def _last_answer(text: str, found: list[Box]) -> list[str]:
    r"""Return what the last answer in boxes holds.

    Boxes with nothing but "and", "or" or a comma between them are one answer; of others, only the last
    is: ``\boxed{41}. No, wait: \boxed{42}`` is 42.
    """
    first = len(found) - 1
    while first and BETWEEN_BOXES.fullmatch(text, found[first - 1].end, found[first].start):
        first -= 1
    return list(dict.fromkeys(without_mark(box.content) for box in found[first:]))


def _boxes(text: str) -> Iterator[Box]:
    end = 0
    for command in BOX.finditer(text):
        if command.start() < end:
            continue
        if text.startswith("{", command.end()):
            end = _closing(text, command.end())
            content = text[command.end() + 1 : end].strip()
            end += 1
        else:
            bare = BARE_ARGUMENT.match(text, command.end())
            end, content = (bare.end(), bare[0]) if bare else (command.end(), "")
        content = _unwrapped(content)
        if content:
            yield Box(command.start(), end, content)


def _unwrapped(content: str) -> str:
    """Return what is in a box that holds nothing but another box."""
    for _ in range(MOST_BOXES_IN_A_BOX):
        command = BOX.match(content)
        if command is None or not content.startswith("{", command.end()):
            break
        end = _closing(content, command.end())
        if end + 1 < len(content):
            break
        content = content[command.end() + 1 : end].strip()
    return content


def _closing(text: str, opening: int) -> int:
    """Return where the brace that opens there is closed, the end of the text if it never is."""
    depth = 0
    for brace in BRACE.finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return brace.start()
    return len(text)


def _answer_line(text: str, found: list[Box]) -> str:
    """Return what is on the line of the last answer mark outside of boxes with something behind it."""
    starts = [box.start for box in found]
    for mark in reversed(list(MARK.finditer(text))):
        box = bisect(starts, mark.start()) - 1
        if box >= 0 and mark.start() < found[box].end:
            continue
        lines = text[mark.end() :].lstrip(AROUND_A_LINE + ":").splitlines()
        lines = [line.partition("</answer>")[0] for line in lines]
        line = next((line for line in lines if line.strip(AROUND_A_LINE) not in OPENS_A_FORMULA), "")
        if line:
            return line.strip(AROUND_A_LINE)
    return ""


def _fraction(found: re.Match[str]) -> str:
    above, _slash, below = _compatible(found[0]).partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text)
