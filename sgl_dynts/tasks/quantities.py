r"""Numbers with units: 1.5 hours and 90 minutes are one quantity, 5 m and 7 s are of two kinds."""

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

KNOWN = {
    "time": {
        "s sec secs second seconds": "1",
        "ms millisecond milliseconds": "1/1000",
        "min mins minute minutes": "60",
        "h hr hrs hour hours": "3600",
        "day days": "86400",
        "week weeks": "604800",
    },
    "months": {"month months": "1", "year years yr yrs": "12"},
    "length": {
        "m meter meters metre metres": "1",
        "mm millimeter millimeters millimetre millimetres": "1/1000",
        "cm centimeter centimeters centimetre centimetres": "1/100",
        "dm decimeter decimeters decimetre decimetres": "1/10",
        "km kilometer kilometers kilometre kilometres": "1000",
        "in inch inches": "254/10000",
        "ft foot feet": "3048/10000",
        "yd yard yards": "9144/10000",
        "mi mile miles": "1609344/1000",
    },
    "mass": {
        "g gram grams": "1",
        "mg milligram milligrams": "1/1000",
        "kg kilogram kilograms": "1000",
        "oz ounce ounces": "28349523125/1000000000",
        "lb lbs pound pounds": "45359237/100000",
    },
    "volume": {
        "l liter liters litre litres": "1",
        "ml milliliter milliliters millilitre millilitres": "1/1000",
        "gal gallon gallons": "3785411784/1000000000",
    },
    "money": {"cent cents ¢": "1/100", "dollar dollars $": "1"},
}
"""By dimension: names of units, and what one is in the first of them."""
UNITS = {
    name: (dimension, Fraction(size))
    for dimension, units in KNOWN.items()
    for names, size in units.items()
    for name in names.split()
}
PIECE = re.compile(r"(/|per\b)?[\s·()]*([A-Za-z$¢]+)(?:\s*\^\s*\{?\s*(-?\d)\s*\}?)?[\s·()]*")
SQUARES = re.compile(r"\b(square|sq|cubic|cu)\.?\s+([a-z]+)")
POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}


@dataclass(frozen=True)
class Unit:
    """Powers of dimensions, and how many basic units it is."""

    dimensions: tuple[tuple[str, int], ...]
    size: Fraction


def unit(phrase: str) -> Unit | None:
    """Return what a phrase such as ``km / h`` means, None where a word of it is not known."""
    words = SQUARES.sub(lambda found: f"{found[2]}^{POWERS[found[1]]}", phrase.casefold())
    words = re.sub(r"\bmph\b", "mi/h", re.sub(r"\bk(?:mh|ph)\b", "km/h", words)).strip()
    dimensions, size, start = Counter[str](), Fraction(1), 0
    while start < len(words):
        found = PIECE.match(words, start)
        if found is None or found[2] not in UNITS:
            return None
        power = int(found[3] or 1) * (-1 if found[1] else 1)
        dimension, one = UNITS[found[2]]
        dimensions[dimension] += power
        size *= one**power
        start = found.end()
    powers = {name: power for name, power in sorted(dimensions.items()) if power}
    return Unit(tuple(powers.items()), size) if powers else None


def in_one_unit(gold: tuple[str, str], said: tuple[str, str]) -> tuple[str, str] | bool | None:
    """Write two quantities in the same unit.

    Args:
        gold: its number as LaTeX, and its unit.
        said: alike.

    Returns:
        Both numbers of that unit as LaTeX; False where the units are of other kinds; None where one is
        not known.
    """
    one, other = unit(gold[1]), unit(said[1])
    if one is None or other is None:
        return None
    if one.dimensions != other.dimensions:
        return False
    factor = other.size / one.size
    if factor == 1:
        return gold[0], said[0]
    return gold[0], rf"\frac{{{factor.numerator}}}{{{factor.denominator}}}\cdot({said[0]})"
