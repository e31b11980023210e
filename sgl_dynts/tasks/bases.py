r"""Numbers written in another base, ``11111_2``; math-verify reads past the subscript."""

import re
from dataclasses import dataclass

BASED = re.compile(
    r"(?:[A-Za-z]\s*=\s*)?\(?(?P<digits>[0-9A-Za-z]+)\)?\s*"
    r"(?:_\s*(?:(?:\\(?:text|mathrm)\s*)?\{(?P<braced>[^{}]*(?:\{[^{}]*\})?[^{}]*)\}|(?P<one>\d))"
    r"|(?:\\text\s*\{\s*)?\(?\s*(?:in )?base[\s-]*\}?\s*(?P<told>\w+)\s*\)?\s*\}?)"
)
AROUND_THE_BASE = re.compile(r"\\[A-Za-z]+|[{}()\s~]|base")
WITHIN_DIGITS = re.compile(r"(?<=[0-9A-Za-z])(?:\\[,;:! ]|[\s,~])+(?=[0-9A-Za-z])(?!in\b|base\b)")
NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen"
)
BASES = {name: base for base, name in enumerate(NAMES.split())}
BASES |= {"binary": 2, "octal": 8, "decimal": 10, "hex": 16, "hexadecimal": 16}
FONT = re.compile(r"\\(?:text|mathrm|mathtt|texttt|mathbf|overline)\s*\{([0-9A-Za-z]+)\}(?=\s*_)")
SUBSCRIPT = re.compile(r"[0-9]\)?\s*_\s*(?:\{([^{}]*)\}|(\d))")
MOST_DIGITS = 10_000


@dataclass(frozen=True)
class Based:
    """Digits without leading zeros, in capitals, and the base that they are written in."""

    digits: str
    base: int

    @property
    def value(self) -> int | None:
        """The number; None where the digits are not of this base."""
        try:
            return int(self.digits, self.base)
        except ValueError:
            return None


def read(answer: str) -> Based | None:
    """Return a number that names its base, None for any other answer.

    Letters alone are digits in base 16 only: ``a_2`` is a member of a sequence.
    """
    found = BASED.fullmatch(FONT.sub(r"\1", WITHIN_DIGITS.sub("", answer[:MOST_DIGITS])))
    if found is None:
        return None
    told = AROUND_THE_BASE.sub("", found["braced"] or found["one"] or found["told"]).lower()
    base = BASES.get(told) or (int(told) if told.isdecimal() and len(told) < 3 else 0)
    digits = found["digits"]
    is_number = any(digit.isdecimal() for digit in digits) or (base == 16 and digits.isupper())
    return Based(_digits(digits), base) if 2 <= base <= 36 and is_number else None


def same(gold: str, said: str) -> bool | None:
    """Whether two answers are the same number, where one names its base; None where bases say nothing.

    A gold that names a base asks for the number as it is written in it, and an answer may leave the base
    out. A gold without one is met by the same digits or the same value. Of several numbers, as in a list,
    only the bases are compared.
    """
    wanted, given = read(gold), read(said)
    if wanted is None and given is None:
        return None if _subscripts(gold) == _subscripts(said) else False
    if wanted and given:
        return wanted == given or (given.base == 10 and wanted.value == given.value)
    if wanted:
        return wanted.digits == _digits(WITHIN_DIGITS.sub("", said))
    assert given
    plain = _digits(WITHIN_DIGITS.sub("", gold))
    is_value = plain.isdecimal() and given.value is not None and plain == str(given.value)
    return plain == given.digits or is_value


def _digits(text: str) -> str:
    return text.strip().lstrip("0").upper() or "0"


def _subscripts(answer: str) -> list[str]:
    return sorted("".join(found).strip() for found in SUBSCRIPT.findall(answer))
