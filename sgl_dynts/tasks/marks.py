r"""Words that say "the answer is": which one counts beside a box, and which stands within one.

After a box a text mostly speaks about its answer, "The answer is positive, so we are done.", and seldom
replaces it, "No: the answer is 7." The second has a value where the first has words.
"""

import re

ANSWER_WORDS = r"\b(?:answers?|respuesta|réponse|antwort|ответ|risposta|resposta)\b"
ENGLISH_MARK = rf"{ANSWER_WORDS}(?:[^\n.:?!]{{0,80}}?\b(?:is|are|be)\b[*_]*:?|[*_ ]*[:=]|[*_# ]*\n)"
CHINESE_MARK = (
    r"(?:答案|答え|正解|정답|답|答)[*_ ]*(?:应该|應該|应当|應當|应|應|就|即|便)*"
    r"(?:(?:是|为|為|等于|等於|は|은|는)[*_ ]*:?|:)"
)
MARK = re.compile(rf"(?:{ENGLISH_MARK}|{CHINESE_MARK}|<answer>)", re.IGNORECASE)
FONT = r"\\(?:text|textbf|mathrm|mathbf)\s*\{\s*"
AT_THE_BEGINNING = re.compile(
    rf"({FONT})?(?:(?:so|the|final|correct|my)\s+)*(?:{ENGLISH_MARK}|{CHINESE_MARK})\s*(\}})?",
    re.IGNORECASE,
)

LONGEST_BEFORE, LONGEST_VALUE = 80, 200
"""Characters before and behind a mark that are looked at for a correction."""
OF_THE_QUESTION = re.compile(
    rf"(?:{ANSWER_WORDS}|\s|[*_:=]|to (?:this|the|our) (?:question|problem|task|puzzle)|\b(?:is|are|be"
    r"|should|must|will|actually|really|indeed|instead|therefore|thus|then|now|here)\b)+",
    re.IGNORECASE,
)
"""A mark without a case of its own, as "the answer for n = 1 is" has one."""
BEGINS = re.compile(
    r"(?:^|[\n.!?:;。])[\s*_#>-]*(?:(?:so|thus|hence|the|my|our|final|correct(?:ed)?|right|new|revised"
    r"|updated|actual|actually|wait|no|correction|最终|最后|正确|所以|因此|故)[\s,:]*)*\Z",
    re.IGNORECASE,
)
"""What stands before "Answer:" as a line of its own rather than "Checking the answer:"."""
OF_OTHERS = re.compile(
    r"\b(?:wrong|incorrect|naive|common|previous|earlier|first|initial|original|old|other|their|whose|any"
    r"|sample|example|expected|given|trivial|approximate)\s+\Z"
    r"|\bfor\b[^.!?;\n]*=[^.!?;\n]*\Z"
    r"|\b(?:if|suppose|assum\w+|unless|whether|why|says?|claims?)\b[^.!?;\n]*\Z"
    r"|(?:如果|若|假设|假如|为什么|错误的?|原来的?)[^。,.\n]*\Z",
    re.IGNORECASE,
)
END = re.compile(
    r"[!?。\n]|\.(?=\s|$)"
    r"|\s*[,;(\u2014-]?\s*\b(?:because|since|as|not|rather than|instead of|which|where|so|after|and not"
    r"|(?:and|but) (?:the|it|we|this|I))\b"
    r"|[,;(]\s*(?=[\u4e00-\u9fff])|</answer>|$"
)
"""Where a value ends and a reason or the next sentence begins."""
COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{[^{}]*\}|\\[A-Za-z]+")
PROSE = re.compile(
    r"(?<![A-Za-z])(?!(?:and|or|pi|sqrt|sin|cos|tan|ln|log|exp|cm|km|mm|kg)\b)[a-z]{2,}"
    r"|[\u4e00-\u9fff]|\A\W*(?:[<>≤≥]|\\[lg]eq?\b)|\A[^\w\\]*\Z"
)
"""What no value holds: words, or a bound where the value should be."""
OPTION = re.compile(r"\(?[A-Z](?:\)|[.:])\s")
"""The letter of a choice in front of its words."""
ONE_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
FILLER = re.compile(r"\A(?:(?:exactly|actually|simply|just|instead|indeed|now|therefore)\b[\s,:]*)+")
AROUND = " \t\r\n*_#`:"


def without_mark(content: str) -> str:
    r"""Return what is in a box behind its own "The answer is", ``\text{The answer is }42``."""
    found = AT_THE_BEGINNING.match(content)
    if found is None or not content[found.end() :].strip(" }"):
        return content
    is_open = bool(found[1]) and not found[2]
    return (found[1] if is_open else "") + content[found.end() :].strip()


def correction(text: str, start: int) -> str:
    """Return the last answer that a text puts in a box's place, "" for none.

    Args:
        text: normalized.
        start: where the box ends.
    """
    for mark in reversed(list(MARK.finditer(text, start))):
        if value := _value(text[mark.end() : mark.end() + LONGEST_VALUE], mark[0]):
            before = text[max(start, mark.start() - LONGEST_BEFORE) : mark.start()]
            if _is_own(before, mark[0]):
                return value
    return ""


def _is_own(before: str, mark: str) -> bool:
    """Whether a mark tells the text's own answer to the question asked."""
    if mark == "<answer>":
        return True
    if OF_OTHERS.search(before):
        return False
    if _is_label(mark):
        return BEGINS.search(before) is not None
    return OF_THE_QUESTION.fullmatch(mark) is not None or not mark.isascii()


def _is_label(mark: str) -> bool:
    return re.search(r"\b(?:is|are|be)\b", mark) is None and mark.isascii()


def _value(behind: str, mark: str) -> str:
    """Return the value at the beginning of what stands behind a mark; "" where words stand."""
    behind = FILLER.sub("", behind.lstrip(AROUND), count=1).lstrip(AROUND)
    end = END.search(behind)
    assert end
    value = behind[: end.start()].strip(AROUND)
    if end[0] == "?":
        return ""
    if OPTION.match(value) or (_is_label(mark) and ONE_WORD.fullmatch(value)):
        return value
    return "" if PROSE.search(COMMAND.sub("1", value)) else value
