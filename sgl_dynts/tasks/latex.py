r"""One spelling for answers that are the same mathematics; what math-verify leaves as it is.

Its own normalisation follows, on what these rules return. They are tables: a pattern, what takes its
place, and why it stands here by its name.
"""

import re

THIN_SPACE = (
    r"(?:\\[,;:!> ]|\\(?:thin|med|thick)space|\\[hm]space\*?\{[^{}]*\}|\\mathpunct\s*\{,\}|~"
    r"|\{(?:,|\\[,;:! ])\}|[\u00a0\u2006-\u200b\u202f\u205f])"
)
FONTS = (
    r"\\(?:mathbf|bold|boldsymbol|bm|pmb|textbf|textit|textrm|textsf|texttt|textnormal|emph|mathrm|mathit|mathsf"
    r"|mathtt|mathnormal|mathbin|mathord|text|mbox|hbox|underline|num)"
)
CURRENCY = (
    r"(?:\\?[$€£¥₹₩]|\\(?:pounds|euro|yen|texteuro|textdollar|textsterling|textyen)(?![A-Za-z])(?:\{\})?)"
)
MONEY = (
    r"(?:US ?|U\.S\. ?)?(?:dollars?|USD|euros?|EUR|pounds?|sterling|GBP|yen|JPY|yuan|RMB|CNY|rupees?|INR"
    r"|Rs\.?)"
)
FUNCTIONS = "ln|log|exp|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|gcd|max|min"
NUMBER = r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
VALUE = rf"(?:{NUMBER}|-?\\[dt]?frac\s*\{{[^{{}}]*\}}\s*\{{[^{{}}]*\}})"
DEGREES = r"(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree)\s*(?:\\(?:text|mathrm)\s*\{\s*)?[CFK]?\s*\}?"

SPELLINGS = (
    (r"\\(?:left|right|[bB]ig{1,2}[lrm]?)(?=[(){}\[\]|.\\])\.?", ""),
    (r"√\s*(?:\(([^()]*)\)|(\d+|[A-Za-z]))", r"\\sqrt{\1\2}"),
    (r"∞", r"\\infty "),
    (r"\\langle(?![A-Za-z])\s*", "("),
    (r"\\rangle(?![A-Za-z])", ")"),
    (r"[∅⌀Ø]|\\\{\s*\\\}|\\varnothing(?![A-Za-z])|\\text\s*\{\s*(?:the )?empty set\s*\}", r"\\emptyset "),
    (r"\u00d7", r"\\times "),
    (r"[·⋅]", r"\\cdot "),
    (r"÷", r"\\div "),
    (r"≤", r"\\le "),
    (r"≥", r"\\ge "),
    (r"\u222a", r"\\cup "),
    (r"∩", r"\\cap "),
    (r"∈", r"\\in "),
    (r"\\mathbb\s*([CNQRZ])(?![A-Za-z])", r"\\mathbb{\1}"),
    (r"\\([CNQRZ])(?![A-Za-z])", r"\\mathbb{\1}"),
    (r"\\mathbb\s*\{R\}\s*(?:\^\s*(?:\+|\{\s*\+\s*\})|_\s*\{\s*>\s*0\s*\})(?!\s*[_^])", r"(0,\\infty)"),
    (r"\\mathbb\s*\{R\}\s*(?:\^\s*(?:-|\{\s*-\s*\})|_\s*\{\s*<\s*0\s*\})(?!\s*[_^])", r"(-\\infty,0)"),
    (r"\\mathbb\s*\{R\}\s*_\s*\{\s*\\g(?:e|eq|eqslant)\s*0\s*\}(?!\s*[_^])", r"[0,\\infty)"),
    (r"\\[cdt]frac(?![A-Za-z])", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\\pi)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\{([^{}]*)\\choose\s*([^{}]*)\}", r"\\binom{\1}{\2}"),
)
COLOURS = (
    (r"\\fcolorbox\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}\s*\{[^{}]*\}", ""),
    (r"\\(?:color|textcolor|mathcolor|colorbox|pagecolor)\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}", ""),
    (r"\\bbox\s*(?:\[[^\]]*\])?(?=\s*\{)", ""),
    (
        r"\\(?:displaystyle|textstyle|scriptstyle|bf|rm|it|tt|sf|bfseries|large|Large|LARGE|huge|Huge|normalsize)\b",
        "",
    ),
)
LETTERS = (
    (r"\\(?:mathrm|mathit|mathsf|text|textrm|textit|operatorname|rm)\s*\{\s*([ei])\s*\}", r"{\1}"),
    (r"(?<=[\d.])\s*i\b", r" i"),
    (rf"\\(?:mathrm|text|operatorname)\s*\{{\s*({FUNCTIONS})\s*\}}", r"\\\1 "),
)
"""A constant or a function in upright letters is what it is, and ``1.0i`` holds the imaginary unit."""
NUMBERS = (
    (rf"(?<=\.\d{{3}}){THIN_SPACE}+(?=\d{{1,3}}(?!\d))", ""),
    (rf"(?<![\w^.])(\d{{1,3}})(?:{THIN_SPACE}|[_ ])+(?=\d{{3}}(?!\d))", r"\1"),
    (rf"(?<=\d{{3}}){THIN_SPACE}+(?=\d{{3}}(?!\d))", ""),
    (rf"{FONTS}\s*\{{\s*({NUMBER})\s*\}}", r"\1"),
)
MONEY_AROUND = (
    (rf"\\text\s*\{{\s*(?:{CURRENCY}|{MONEY})\s*\}}", ""),
    (rf"{CURRENCY}\s*(?=-?[\d.])|(?<=[\d}}])\s*{CURRENCY}", ""),
    (rf"(?<![A-Za-z])(?:{MONEY})\s*(?={NUMBER})|(?<=\d)\s*{MONEY}(?![A-Za-z])", ""),
)
END_SIGNS = " \t\r\n\f\v.,;:~。\u3001\\"
END_COMMAND = re.compile(r"(?:\\q?quad|\\pmod\s*\{[^{}]*\})$")
LONGEST_END = 40
"""Characters of a command that ends an answer and is no part of it."""
BEGINNING = re.compile(r"(?:[\s~]|\\[,;:! ]|\\q?quad(?![A-Za-z]))*")

WHOLE = (
    (rf"{FONTS}\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}", r"\1"),
    (r"\*\*(.+)\*\*", r"\1"),
    (r"\\ensuremath\s*\{([^{}]*)\}", r"\1"),
    (r"\{([^{},]*)\}", r"\1"),
    (r"\$\$?([^$]*)\$\$?", r"\1"),
    (r"\\\((.*)\\\)", r"\1"),
    (r"\\\[(.*)\\\]", r"\1"),
    (rf"\\text\s*\{{[^{{}}\d=]*\}}\s*({VALUE}.*)", r"\1"),
    (rf"({VALUE})\s*{DEGREES}", r"\1"),
)
"""Of a whole answer only: what is wrapped around it, words before a number, degrees behind it."""
WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'-]+[^\W\d_]+)*")
FORMULA = re.compile(r"^\$\$?([^$]+)(?<!\\)\$\$?$")
"""An answer that is one formula, whose last dollar sign is no currency."""
MOST_LAYERS = 4


def _compiled(rules: tuple[tuple[str, str], ...]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern, re.DOTALL), place) for pattern, place in rules]


IN_A_TEXT = _compiled((*SPELLINGS, *COLOURS, *LETTERS, *NUMBERS, *MONEY_AROUND))
OF_THE_WHOLE = _compiled(WHOLE)


def plain(text: str) -> str:
    """Return a text in which numbers, colours, currencies and constants have one spelling."""
    for pattern, place in IN_A_TEXT:
        text = pattern.sub(place, text)
    return text


def bare(answer: str) -> str:
    """Return a whole answer without fonts, dollar signs and a full stop around it."""
    answer = _without_ends(plain(FORMULA.sub(r"\1", answer.strip())))
    for _ in range(MOST_LAYERS):
        before = answer
        for pattern, place in OF_THE_WHOLE:
            whole = pattern.fullmatch(answer)
            answer = _without_ends(whole.expand(place)) if whole else answer
        if answer == before:
            break
    return answer


def is_words(answer: str) -> bool:
    """Whether a bare answer is words of any language rather than mathematics."""
    return WORDS.fullmatch(answer) is not None


def _without_ends(answer: str) -> str:
    """Return an answer without spaces and full stops around it, in a time that grows with its length."""
    start = _end_of(BEGINNING.match(answer))
    end = before = len(answer)
    while True:
        while end > start and answer[end - 1] in END_SIGNS:
            end -= 1
        command = END_COMMAND.search(answer, max(start, end - LONGEST_END), end)
        end = command.start() if command else end
        if end == before:
            return answer[start:end]
        before = end


def _end_of(found: re.Match[str] | None) -> int:
    return found.end() if found else 0
