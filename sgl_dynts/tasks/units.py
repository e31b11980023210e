r"""Units behind a number, ``12\,\mathrm{m\,s^{-1}}``; math-verify knows one unit without a power."""

import re

from latex2sympy2_extended.math_normalization import units_regex_pattern

from sgl_dynts.tasks import quantities
from sgl_dynts.tasks.latex import VALUE

SYMBOLS = r"[kMGTmμnp]?(?:Ω|Pa|Hz|eV|mol|[JWVANFTL])|[kmμn]?g|[kcdmμnp]?m|[mμnp]?s|Å|K|C"
MORE_UNITS = (
    "people|persons?|times|rad(?:ian)?s?|yd|oz|m[Ls]|ml|in|mi|[kM]?[Oo]hms?"
    "|min(?:ute)?s?|hrs?|hours?|days?|weeks?|months?|gal(?:lon)?s?|lbs?|ft|cents?"
)
NAMES = (
    "(?:kilo|mega|centi|milli|micro|nano)?(?:grams?|met(?:er|re)s?|lit(?:er|re)s?|joules?|watts?|volts?|newtons?"
    "|amperes?|kelvins?|hertz|pascals?|moles?)"
)
POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
UNIT = rf"(?:{SYMBOLS}|{NAMES}|{MORE_UNITS}|{units_regex_pattern})(?![A-Za-z]){POWER}"
UNITS = rf"{UNIT}(?:\s*(?:/|per\b|·|\s)\s*\(?{UNIT}\)?)*"
QUANTITY = re.compile(rf"((?:[A-Za-z]\s*=\s*)?{VALUE})(?:\s+|(?=[A-Za-zμ]{{2}}|Ω))\(?({UNITS})\)?\s*")
TEXT_BEHIND = re.compile(r"(?<=\S)\s*\\(?:text|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?-?\d\}?)?$")
ONE_SYMBOL = re.compile(rf"({SYMBOLS})(?:\s*\^\s*\{{?\s*\d\s*\}}?)?\s*")
NAMED = re.compile(r"^[A-Za-z]\s*=\s*")
LONGEST = 300
"""Characters of an answer in which units are looked for."""
SPELLINGS = (
    (re.compile(r"\\(?:text|textrm|mathrm|mathsf|mbox|hbox|rm)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"), r" \1 "),
    (re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\{\}"), " "),
    (re.compile(r"\\(?:cdot|times)(?![A-Za-z])|⋅"), "·"),
    (re.compile(r"\\AA(?![A-Za-z])"), "Å"),
    (re.compile(r"\\min(?![A-Za-z])"), " min "),  # upright, and so taken for the function
    (re.compile(r"\\(?:up)?mu(?![A-Za-z])\s*|μ\s+"), "μ"),
    (
        re.compile(r"(?:(?<=[\s\d}])([kMGmμ])\s*)?\\(?:Omega|ohm)(?![A-Za-z])|(?<=[\s\d}])([kMG])\s+Ω"),
        r"\1\2Ω",
    ),
)


def without_units(answer: str) -> str:
    """Return a number or an expression without units behind it; in ``3t`` a variable stands."""
    quantity = _quantity(answer)
    return quantity[1] if quantity else TEXT_BEHIND.sub("", answer)


def behind(answer: str) -> list[str]:
    """The words behind an expression: a unit, or a condition such as ``n even``."""
    found = TEXT_BEHIND.search(answer)
    return found[0].casefold().split() if found else []


def in_one_unit(gold: str, said: str) -> tuple[str, str] | bool | None:
    """Write two numbers with units in the same one; see :func:`quantities.in_one_unit`."""
    found = [_quantity(answer) for answer in (gold, said)]
    if not all(found):
        return None
    one, other = ((NAMED.sub("", quantity[1]), quantity[2]) for quantity in found if quantity)
    return quantities.in_one_unit(one, other)


def differ(gold: str, said: str) -> bool:
    """Whether two numbers have one symbol of a unit each, and not the same, as 6 km and 6 m have."""
    symbols = [_symbol(answer) for answer in (gold, said)]
    return all(symbols) and symbols[0] != symbols[1]


def _symbol(answer: str) -> str:
    quantity = _quantity(answer)
    symbol = ONE_SYMBOL.fullmatch(quantity[2]) if quantity else None
    return symbol[1] if symbol else ""


def _quantity(answer: str) -> re.Match[str] | None:
    if len(answer) > LONGEST:
        return None
    for pattern, place in SPELLINGS:
        answer = pattern.sub(place, answer)
    return QUANTITY.fullmatch(answer)
