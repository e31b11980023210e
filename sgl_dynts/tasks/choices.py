"""Which letter of a multiple-choice question a text tells."""

import re
from collections.abc import Mapping
from itertools import pairwise

from sgl_dynts.tasks.answers import said_answers
from sgl_dynts.tasks.latex import bare

BEFORE_A_LETTER = (
    r"(?:(?:the )?(?:correct |right |final |best )?(?:option|choice|answer|letter|statement)(?: is)?"
    r"[\s:]*)?"
)
DECORATED = r"[\s*_(\[{\"'`$]*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(?)?"
ALONE = re.compile(rf"{BEFORE_A_LETTER}{DECORATED}([A-Za-z])[\s*_)\]}}\"'`$.:]*", re.IGNORECASE)
FIRST = re.compile(
    rf"{BEFORE_A_LETTER}{DECORATED}([A-Za-z])(?:[*_\"'`$}}]*[).:,;\]](?!\w)|[*_\"'`$}}]+(?!\w)"
    r"|\s+(?:because|since|as|is|was|due|for|given|which|would|follows)\b|\s*[-=])",
    re.IGNORECASE,
)
NO_WORD_BEFORE = r"(?<![^\W\u3040-\u9fff\uac00-\ud7af])(?<!')"
NO_WORD_BEHIND = r"(?![^\W\u3040-\u9fff\uac00-\ud7af]|')"
"""Chinese, Japanese and Korean put no space between a letter and a word."""
CHINESE_CHOICE = r"(?:选项|選項|选择|選擇|选|選)(?:应|應)?(?:是|为|為)?\s*:?\s*"
MARKED = re.compile(
    rf"\(([A-Z])\)|\*\*\(?([A-Z])\)?[.:]?\*\*|(?:(?:option|choice)\s*|(?<![不非]){CHINESE_CHOICE})\(?([A-Z])"
    rf"{NO_WORD_BEHIND}|{NO_WORD_BEFORE}([A-Z])\)?(?:选项|選項|项|項)",
    re.IGNORECASE,
)
OR_ANOTHER = re.compile(
    rf"\s*(?:[或和与、/]|\bor\b|\band\b)\s*(?:(?:option|choice)\s|选项|選項)?[\s*(]*([A-Z]){NO_WORD_BEHIND}",
    re.IGNORECASE,
)
LETTER = re.compile(rf"{NO_WORD_BEFORE}([A-Z]){NO_WORD_BEHIND}")
ONE_LETTER = rf"\(?[A-Z]{NO_WORD_BEHIND}\)?"
LETTERS = rf"{NO_WORD_BEFORE}{ONE_LETTER}(?:\s*(?:[,/、和与及]|\band\b|\bor\b)\s*{ONE_LETTER}){{0,3}}"
WRONG = re.compile(
    rf"(?:\b(?:options?|choices?)\s+|选项|選項)?{LETTERS}(?:"
    r"\s+(?:is|are|was|were|must be|seems?)\s+(?:both |all |also |clearly |therefore |thus )?(?:wrong"
    r"|incorrect|false|impossible|excluded|ruled out|not (?:correct|right|true|possible))\b"
    r"|\s+(?:cannot|can't|can not|isn't|aren't|is not|are not|fails?|does not|doesn't|do not|don't)\b"
    r"|\s*(?:选项|選項|项|項)?(?:都|均|皆|显然)?(?:是|为)?(?:错误|错|錯誤|錯|不正确|不正確|不对|不對|不成立"
    r"|不符合?|被?排除))"
    rf"|(?:排除|不选|不選|不是)(?:选项|選項)?\s*{LETTERS}"
)
"""Letters that are called wrong, and whose question may even ask for a wrong one."""
ARTICLE = re.compile(r"(?<![\w'])(?:A|I)(?=\s+(?!(?:or|and|is|because|since)\b)[a-z])")
UNDECIDED = re.compile(r"\s*(?:[,/&]|\bor\b|\band\b|或|和|、)[\s(]*")
DENIED = re.compile(r"\b(?:not|nor|neither)\s+(?:option |choice )?\(?[A-Z](?![\w'])\)?", re.IGNORECASE)
IN_TEXT = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]*)\}")
PICKED = re.compile(rf"(?<![不非]){CHINESE_CHOICE}\(?([A-Z]){NO_WORD_BEHIND}")


def letter_of(text: str, known: str, choices: Mapping[str, str]) -> str:
    """Return the letter that a text tells as its answer.

    Args:
        text: normalized.
        known: the letters that count.
        choices: letter to text, as far as a problem lists them.

    Returns:
        A letter of `known`, or "" where none is told or more than one.
    """
    for parts in said_answers(text):
        said = _told(parts, known, choices)
        if said is not None:
            return said
    picked = [letter for letter in PICKED.findall(text) if letter in known]
    return picked[-1] if picked else ""


def _told(parts: list[str], known: str, choices: Mapping[str, str]) -> str | None:
    """Return the letter of one answer, "" for several at once, None for none."""
    letters = {_letter(part, known, choices) for part in parts} - {None}
    if len(letters) > 1:
        return ""
    return next(iter(letters), None)


def _letter(answer: str, known: str, choices: Mapping[str, str]) -> str | None:
    """Return the letter of an answer's one part: as a choice's text, at its beginning, or within it."""
    whole = bare(answer)
    alone = ALONE.fullmatch(whole)
    if alone and alone[1].upper() in known:
        return alone[1].upper()
    by_text = [letter for letter, text in choices.items() if _same(text, whole)]
    if len(by_text) == 1:
        return by_text[0]
    rest = WRONG.sub(" ", whole)
    said = _beginning_or_within(rest, known, choices) if rest != whole else None
    return said if said is not None else _beginning_or_within(whole, known, choices)


def _beginning_or_within(whole: str, known: str, choices: Mapping[str, str]) -> str | None:
    first = FIRST.match(whole)
    if first and first[1].upper() in known and not any(_undecided_pairs(whole, known)[:1]):
        return first[1].upper()
    return _within(whole, known, choices)


def _within(answer: str, known: str, choices: Mapping[str, str]) -> str | None:
    answer = DENIED.sub(" ", answer)
    found = list(MARKED.finditer(answer))
    marked = [letter for mark in found if (letter := mark[mark.lastindex or 0].upper()) in known]
    others = [other[1].upper() for mark in found if (other := OR_ANOTHER.match(answer, mark.end()))]
    if len(set(marked)) == 1:
        return "" if set(others) & set(known) - set(marked) else marked[0]
    if any(_undecided_pairs(answer, known)):
        return ""
    if marked:
        return marked[-1]
    named = [letter for letter, text in choices.items() if _holds(answer, text)]
    if len(named) == 1:
        return named[0]
    letters = [letter for letter in LETTER.findall(ARTICLE.sub(" ", answer)) if letter in known]
    return letters[-1] if letters else None


def _undecided_pairs(answer: str, known: str) -> list[bool]:
    """Whether two letters have only "or", "and" or a comma between them, for each one and the next."""
    found = [match for match in LETTER.finditer(ARTICLE.sub(" ", answer)) if match[1] in known]
    return [
        one[1] != other[1]
        and bool(UNDECIDED.fullmatch(one.string[one.end() : other.start()].strip("()*$ ")))
        for one, other in pairwise(found)
    ]


def _same(text: str, answer: str) -> bool:
    return _folded(bare(text)) == _folded(answer)


def _holds(answer: str, text: str) -> bool:
    wanted = _folded(bare(text))
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", _folded(answer)) is not None


def _folded(text: str) -> str:
    return " ".join(IN_TEXT.sub(r" \1", text).casefold().split())
