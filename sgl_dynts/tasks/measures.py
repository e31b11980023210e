r"""What a number counts: ``\$5`` beside ``500`` cents, ``60^\circ`` beside ``\pi/3``."""

import re

from sgl_dynts.tasks.latex import CURRENCY, DEGREES, VALUE, plain

CENTS = re.compile(rf"({VALUE})\s*(?:\\?¢|\\(?:text|mathrm)\s*\{{\s*(?:cents?|¢)\s*\}}|cents?\b)")
DOLLARS = re.compile(rf"{CURRENCY}\s*(?=-?[\d.])|\bdollars?\b")
ANGLE = re.compile(rf"\$*({VALUE})\s*{DEGREES}\$*")
RADIANS = re.compile(r"\\pi(?![A-Za-z])|π|\brad(?:ian)?s?\b")


def in_one_measure(gold: str, *said: str) -> list[str]:
    """Write answers that count alike: all in dollars, or all in radians, where they are told in two ways.

    Args:
        gold: the right answer, as it is given.
        said: answers, as they are told.
    """
    answers = [gold, *said]
    cents, dollars = ([bool(way.search(one)) for one in answers] for way in (CENTS, DOLLARS))
    if any(dollars) and any(cents):
        return [_in_dollars(one) for one in answers]
    angles = [ANGLE.fullmatch(_spelt_plainly(one)) for one in answers]
    if any(angles) and any(RADIANS.search(one) for one in answers):
        pairs = zip(answers, angles, strict=True)
        return [rf"\frac{{({angle[1]})\pi}}{{180}}" if angle else one for one, angle in pairs]
    return answers


def _in_dollars(answer: str) -> str:
    found = CENTS.fullmatch(_spelt_plainly(answer))
    return rf"\frac{{{found[1]}}}{{100}}" if found else answer


def _spelt_plainly(answer: str) -> str:
    """An answer without dollar signs around it, spelt plainly."""
    return plain(answer.strip().strip("$")).strip()
