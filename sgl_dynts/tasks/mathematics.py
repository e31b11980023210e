r"""Whether an answer is mathematically the right one, by math-verify and what it needs to be told.

`judge` may take for ever and any amount of memory: ``\binom{10^9}{5 \cdot 10^8}`` is short to write. Call
it by `limited.Limited`, as `graders.Mathematics` does.
"""

import logging
import re
import sys
from dataclasses import replace
from typing import Any

from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import (
    Basic,
    Expr,
    FiniteSet,
    Float,
    I,
    Interval,
    Pow,
    Rational,
    Tuple,
    UnevaluatedExpr,
    binomial,
    exp,
    factorial,
)
from sympy.logic.boolalg import Boolean

from sgl_dynts.tasks import bases, decimals, units
from sgl_dynts.tasks.answers import normalize, said_answers
from sgl_dynts.tasks.latex import VALUE, bare, is_words, plain
from sgl_dynts.tasks.measures import in_one_measure

ENVIRONMENTS = ("$", "\\boxed", "\\(", "\\[")
LONGEST_LINE = 300
"""Characters of an answer line that is read as mathematics as it stands; a longer one is prose."""
DIGITS, DECIMALS = 15, 6
"""math-verify's own precision: of exact numbers, and of decimal ones behind the point."""
MOST_DIGITS = 100_000
MOST_DIGITS_OF_A_DIFFERENCE = 5_000
LOST_DIGITS = 5
"""The last ones of a computed number, in which two equal numbers may differ."""
NO_CLOCK = 0
"""math-verify's own clock does not stop one long instruction, and needs the main thread."""
LEADING_DIGITS = 20
FAR_APART = 1e-3
BITS_PER_DIGIT = 3.3219
SPACE = re.compile(r"(?<!\d) | (?!\d)")
COMMANDS = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+")
VARIABLE = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])")
LONGEST_PRODUCT = 3
"""Letters; more are a word, whose letters math-verify would multiply in any order."""
TEXT_ALONE = re.compile(r"\$*\\text\s*\{\s*[A-Za-z]{2,}\s*\}\$*")
"""Letters that are a name, ``\\text{AB}``, rather than a product."""
NO_UNIT = re.compile(r".*\d[abcdefijknopqrtuvwxyz]")
"""Ends with a letter that is a variable rather than the sign of a unit."""
PERCENTAGE = re.compile(rf"({VALUE})\s*\\?%")
WITH_UNITS = LatexExtractionConfig()
WITHOUT_UNITS = LatexExtractionConfig(
    normalization_config=replace(WITH_UNITS.normalization_config, units=False)
)
LONGEST_NUMBER = 100_000
"""Digits of an integer that Python turns into text and back here; its own limit is 4,300."""

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own clock is off
sys.set_int_max_str_digits(LONGEST_NUMBER)


def judge(gold: str, text: str) -> tuple[bool, str]:
    """Judge a text by its boxes, else by its answer line and by what math-verify finds in it.

    Args:
        gold: the right answer as LaTeX, in dollar signs or not.
        text: what was written after the thinking.

    Returns:
        Whether it is right, and what was said, in the form in which equal answers are mostly equal texts.
    """
    gold, text = normalize(gold), normalize(text)
    if not gold.strip():
        return False, ""
    parts = next(iter(said_answers(text)), [""])
    is_name = any(TEXT_ALONE.fullmatch(answer.strip()) for answer in (gold, *parts))
    gold, *parts = in_one_measure(gold, *parts)
    gold, said = bare(gold), ", ".join(bare(part) for part in parts)
    if is_name and is_words(gold) and is_words(said):
        return _literal(gold) == _literal(said), _literal(said)
    is_boxed = "\\boxed" in text or "\\fbox" in text
    if is_boxed or len(said) <= LONGEST_LINE:
        is_right, shown = same(gold, said)
        if is_boxed or is_right:
            return is_right, shown
    is_euler = decimals.has_euler(gold)
    text = decimals.rewritten(plain(text), is_euler)
    found = _with_imaginary_unit(parse(text, parsing_timeout=NO_CLOCK))
    wanted = _parse(decimals.rewritten(gold, is_euler))
    return _equal(wanted, found), str(found[0]) if found else ""


def same(gold: str, said: str) -> tuple[bool, str]:
    """Compare two bare answers; also returns what was said."""
    if _literal(gold) == _literal(said):
        return bool(said), _literal(said)
    if all(is_words(answer) and len(answer) > LONGEST_PRODUCT for answer in (gold, said)):
        return False, _literal(said)
    based = bases.same(gold, said)
    if based is not None:
        return based, _literal(said)
    percentage = PERCENTAGE.fullmatch(gold)
    if percentage and same(percentage[1], PERCENTAGE.sub(r"\1", said))[0]:
        return True, said
    has_variable = VARIABLE.search(COMMANDS.sub(" ", gold)) or NO_UNIT.fullmatch(said)
    behind = [units.behind(answer) for answer in (gold, said)]
    if has_variable and all(behind) and behind[0] != behind[1]:
        return False, said
    return _same_value(gold, said, WITHOUT_UNITS if has_variable else WITH_UNITS)


def _same_value(gold: str, said: str, way: LatexExtractionConfig) -> tuple[bool, str]:
    is_euler = decimals.has_euler(gold)
    gold, said = (decimals.rewritten(answer, is_euler) for answer in (gold, said))
    converted = units.in_one_unit(gold, said)
    if converted is False or (converted is None and units.differ(gold, said)):
        return False, said
    if isinstance(converted, tuple):
        gold, said = converted
    if sorted(gold) == sorted(said):  # 2mn and 2nm are products
        way = WITHOUT_UNITS
    else:
        gold, said = units.without_units(gold), units.without_units(said)
    wanted, found = _parse(gold, way), _parse(said, way)
    return _equal(wanted, found), str(found[0]) if found else said


def _literal(answer: str) -> str:
    """Return what two answers have in common if they are written alike; words are alike in any case."""
    if is_words(answer):
        return " ".join(answer.casefold().split())
    return SPACE.sub("", normalize_latex(answer, NormalizationConfig()))


def _parse(answer: str, way: LatexExtractionConfig = WITH_UNITS) -> list[Any]:
    is_marked = any(mark in answer for mark in ENVIRONMENTS)
    one_line = " ".join(answer.split())
    marked = answer if is_marked else f"${one_line}$"
    return _with_imaginary_unit(parse(marked, [way, ExprExtractionConfig()], parsing_timeout=NO_CLOCK))


def _with_imaginary_unit(found: list[Any]) -> list[Any]:
    """Read a variable i, which math-verify leaves one, as the imaginary unit."""
    if not found or not isinstance(found[0], Basic):
        return found
    units = {symbol: I for symbol in found[0].free_symbols if str(symbol) == "i"}
    return [found[0].xreplace(units), *found[1:]]


def _equal(wanted: list[Any], found: list[Any]) -> bool:
    if not wanted or not found:
        return False
    gold, said = wanted[0], found[0]
    if _is_number(gold) and _is_number(said) and _far_apart(gold, said):
        return False
    is_equal = verify(
        wanted,
        found,
        numeric_precision=_digits_of(gold, said),
        float_rounding=_decimals_of(gold),
        timeout_seconds=NO_CLOCK,
    )
    if not is_equal and _is_condition(said):  # which math-verify reads in a gold only
        is_equal = verify(found, wanted, timeout_seconds=NO_CLOCK)
    if is_equal:
        return not _differ(gold, said)
    return _is_number(gold) and _is_number(said) and _close_complex(gold, said)


def _is_condition(value: Any) -> bool:
    """Whether a value is a condition such as ``x <= 3`` rather than a set or a number."""
    return isinstance(value, Boolean)


def _is_number(value: Any) -> bool:
    """Whether a value is one number; a percentage is not, since 50 % is taken for 50 and for 0.5."""
    return isinstance(value, Expr) and bool(value.is_number) and not value.has(UnevaluatedExpr)


def _far_apart(gold: Expr, said: Expr) -> bool:
    """Whether two numbers differ in their leading digits, which is told without computing all of them."""
    one, other = gold.evalf(LEADING_DIGITS), said.evalf(LEADING_DIGITS)
    if not all(number.is_comparable and number.is_finite for number in (one, other)):
        return False
    most = max(abs(one), abs(other))
    return bool(most > 1 and abs(one - other) > FAR_APART * most)


def _differ(gold: Any, said: Any) -> bool:
    """Whether two exact values differ by their digits, even if math-verify simplified that away.

    Of sets, lists and intervals, whether one has a value that the other has not.
    """
    wanted, found = _members(gold), _members(said)
    if wanted and found:
        return any(all(_differ(one, other) for other in found) for one in wanted)
    if gold == said or not (_is_exact(gold) and _is_exact(said)):
        return False
    digits = min(MOST_DIGITS_OF_A_DIFFERENCE, _digits_of(gold, said))
    one, other = (value.evalf(digits, maxn=2 * digits) for value in (gold, said))
    if not all(number.is_comparable and number.is_finite for number in (one, other)):
        return False
    most = max(abs(one), abs(other))
    return bool(abs(one - other) > most * Float(10, digits) ** (LOST_DIGITS - digits))


def _members(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Interval):
        return (value.start, value.end)
    return value.args if isinstance(value, FiniteSet | Tuple) else ()


def _is_exact(value: Any) -> bool:
    return _is_number(value) and not value.has(Float)


def _digits_of(gold: Any, said: Any) -> int:
    """Return how many digits tell two values apart: as many as their powers and factorials have, and 15.

    math-verify takes for 0 what is smaller than its precision, 1 / 2^99 too.
    """
    sizes = [abs(_magnitude(part)) for value in (gold, said) for part in _large_parts(value)]
    return min(MOST_DIGITS, DIGITS + sum(sizes))


def _large_parts(value: Any) -> set[Expr]:
    if not isinstance(value, Basic):
        return set()
    parts = value.atoms(Rational, Float) | value.atoms(Pow, exp, factorial, binomial)
    return {part for part in parts if isinstance(part, Expr) and part.is_number}


def _decimals_of(gold: Any) -> int:
    """Return at how many places decimals are compared: 6, more for a small number."""
    if not _is_number(gold) or not (size := _magnitude(gold)) < 0:
        return DECIMALS
    return min(MOST_DIGITS, max(DECIMALS, 3 - size))


def _magnitude(number: Expr) -> int:
    """Return the decimal exponent of a number, 0 of one that has none."""
    value = number.evalf(3)
    if not isinstance(value, Float) or not value:
        return 0
    _sign, _mantissa, exponent, bits = value._mpf_
    return round((int(exponent) + int(bits)) / BITS_PER_DIGIT)


def _close_complex(gold: Expr, said: Expr) -> bool:
    """Whether both parts of two complex numbers are alike to 6 decimals, if one has decimals."""
    if not (gold.has(I) or said.has(I)) or not (gold.has(Float) or said.has(Float)):
        return False
    difference = (gold.evalf(LEADING_DIGITS) - said.evalf(LEADING_DIGITS)).as_real_imag()
    return all(part.is_comparable and abs(part) < 10**-DECIMALS for part in difference)
