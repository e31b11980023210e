r"""Numbers that math-verify misreads: periods, ``0.1\overline{6}``, powers of ten, ``1.5e-9``, degrees.

It drops the sign of a degree, so that the sine of 30 degrees becomes that of 30.
"""

import re
from fractions import Fraction

PERIOD = (
    r"(?:\\(?:overline|bar|dot|overset\s*\{\s*\\cdot\s*\})\s*(?:\{\s*\d+\s*\}|\d)"
    r"|(?:\d[\u0304\u0305\u0307])+)"
)
REPEATING = re.compile(
    rf"(?<![\w.])(?P<whole>\d+)\.(?:(?P<before>\d*)(?P<period>{PERIOD}(?:\d*{PERIOD})?)|\((?P<round>\d+)\))"
    r"(?![\d.])(?P<power>\s*\^)?"
)
MARKS = re.compile(r"\\[a-z]+\s*(?:\{\s*\\cdot\s*\})?|[^\d]")
SCIENTIFIC = re.compile(
    r"(?<![\w.,^_/])(?P<whole>\d+)(?:\.(?P<behind>\d+))?"
    r"(?:\s*(?:\\times|\\cdot|\*|(?<=\s)x(?=\s))\s*10\s*\^\s*(?:\{\s*(?P<braced>[+-]?\d+)\s*\}|\(?(?P<bare>[+-]?\d+)\)?)"
    r"|(?P<e>[eE])(?P<after>[+-]?\d+))(?![\w^!_.(])"
)
ANGLE = re.compile(
    r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])\s*(?:\^\s*(?:\d|\{\d+\}))?\s*"
    r"(?:\([^()]*\)|\{(?:[^{}]|\{[^{}]*\})*\}|\d+(?:\.\d+)?\s*(?:\^\s*\{?\s*\\circ|\u00b0|\\degree)\s*\}?)"
)
IN_DEGREES = re.compile(
    r"(\d+(?:\.\d+)?)\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\u00b0|\\degree(?![A-Za-z]))"
)
MIXED = re.compile(
    r"(?<![\w.^])(?P<whole>\d+)\s*\\frac\s*\{(?P<above>\d+)\}\s*\{(?P<below>\d+)\}(?=\s*\\?%)"
)
"""A mixed number of percents, of which math-verify reads the whole ones."""
EULER = re.compile(r"(?<![\w.])(?!1e)\d+e[+-]\d")
MOST_ZEROS = 400
"""Places that a decimal point is moved by at most; a larger power of ten stays one."""


def rewritten(answer: str, is_e_a_number: bool) -> str:
    r"""Return an answer with angles in radians, periods as fractions, and powers of ten written out.

    Args:
        answer: bare.
        is_e_a_number: ``2e-3`` is Euler's number twice, less 3; ``2.5e-3`` and ``1e-3`` are decimals.
    """
    answer = ANGLE.sub(lambda found: IN_DEGREES.sub(r"(\\frac{\1\\pi}{180})", found[0]), answer)
    answer = MIXED.sub(_improper, REPEATING.sub(_fraction, answer))
    return SCIENTIFIC.sub(lambda found: _written_out(found, is_e_a_number), answer)


def has_euler(answer: str) -> bool:
    """Whether an answer may hold Euler's number in ``2e-3``."""
    return EULER.search(answer) is not None


def _fraction(found: re.Match[str]) -> str:
    before = found["before"] or ""
    period = found["round"] or MARKS.sub("", found["period"])
    nines = (10 ** len(period) - 1) * 10 ** len(before)
    value = Fraction(int(f"{found['whole']}{before}{period}") - int(f"{found['whole']}{before}"), nines)
    text = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    return rf"({text}){found['power']}" if found["power"] else text


def _improper(found: re.Match[str]) -> str:
    below = int(found["below"])
    return rf"\frac{{{int(found['whole']) * below + int(found['above'])}}}{{{below}}}"


def _written_out(found: re.Match[str], is_e_a_number: bool) -> str:
    behind = found["behind"] or ""
    exponent = int(found["braced"] or found["bare"] or found["after"])
    is_euler = found["e"] == "e" and not behind and is_e_a_number and found["whole"] != "1"
    if is_euler or abs(exponent) > MOST_ZEROS:
        return found[0]
    digits = found["whole"] + behind
    point = len(found["whole"]) + exponent
    digits = "0" * (1 - point) + digits if point < 1 else digits.ljust(point, "0")
    point = max(point, 1)
    whole = digits[:point].lstrip("0") or "0"
    return f"{whole}.{digits[point:]}" if digits[point:] else whole
