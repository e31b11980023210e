r"""One spelling for answers that are the same mathematics; what math-verify leaves as it is.

Its own normalisation follows, on what these rules return. They are tables: a pattern, what takes its
place, and why it stands here by its name.
"""

import re

THIN_SPACE = (
    r"(?:\\[,;:!> ]|\\(?:thin|med|thick)space|~|\{(?:,|\\[,;:! ])\}|[\u00a0\u2006-\u200b\u202f\u205f])"
)
FONTS = (
    r"\\(?:mathbf|boldsymbol|bm|pmb|textbf|textit|textrm|textsf|emph|mathrm|mathit|mathsf|text|mbox"
    r"|underline)"
)
CURRENCY = (
    r"(?:\\?[$€£¥₹₩]|\\(?:pounds|euro|yen|texteuro|textdollar|textsterling|textyen)(?![A-Za-z])(?:\{\})?)"
)
MONEY = (
    r"(?:US ?|U\.S\. ?)?(?:dollars?|USD|euros?|EUR|pounds?|sterling|GBP|yen|JPY|yuan|RMB|CNY|rupees?|INR"
    r"|Rs\.?)"
)
NUMBER = r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
VALUE = rf"(?:{NUMBER}|-?\\[dt]?frac\s*\{{[^{{}}]*\}}\s*\{{[^{{}}]*\}})"
POWER = r"(?:\^\{?-?\d\}?)?"
UNIT_NAMES = (
    "km|cm|mm|nm|m|mi|ft|in|yd|kg|mg|g|lb|oz|L|mL|ml|s|ms|sec|min|h|hr|J|kJ|N|W|kW|Pa|kPa|Hz|V|A|K|mol|C|F"
    "|people|persons|students|ways|dollars|cents|points|units|times|meters|metres|kilometers|kilometres"
    "|centimeters|centimetres|miles|feet|inches|hours|minutes|seconds|days|weeks|months|years|degrees"
    "|radians|rad|square|cubic"
)
"""Those that math-verify's own list lacks, or that it reads only where nothing else is beside them."""
UNIT = rf"(?:{UNIT_NAMES})(?![A-Za-z]){POWER}"
UNITS = rf"{UNIT}(?:\s*(?:/|per\b|\\cdot|\s)\s*{UNIT})*"
DEGREES = r"(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree)\s*(?:\\(?:text|mathrm)\s*\{\s*)?[CFK]?\s*\}?"

SPELLINGS = (
    (r"\\(?:left|right|[bB]ig{1,2}[lrm]?)(?=[(){}\[\]|.\\])\.?", ""),
    (r"√\s*(?:\(([^()]*)\)|(\d+|[A-Za-z]))", r"\\sqrt{\1\2}"),
    (r"∞", r"\\infty "),
    (r"[∅⌀]|\\varnothing(?![A-Za-z])|\\text\s*\{\s*(?:the )?empty set\s*\}", r"\\emptyset "),
    (r"\u00d7", r"\\times "),
    (r"[·⋅]", r"\\cdot "),
    (r"÷", r"\\div "),
    (r"≤", r"\\le "),
    (r"≥", r"\\ge "),
    (r"\u222a", r"\\cup "),
    (r"∩", r"\\cap "),
    (r"∈", r"\\in "),
)
COLOURS = (
    (r"\\(?:color|textcolor|colorbox|pagecolor|fcolorbox)\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}", ""),
    (
        r"\\(?:displaystyle|textstyle|scriptstyle|bf|rm|it|bfseries|large|Large|LARGE|huge|Huge|normalsize)\b",
        "",
    ),
)
LETTERS = (
    (r"\\(?:mathrm|mathit|mathsf|text|textrm|textit|operatorname|rm)\s*\{\s*([ei])\s*\}", r"{\1}"),
    (r"(?<=[\d.])\s*i\b", r" i"),
)
"""A constant in upright letters is the constant, and ``1.0i`` holds the imaginary unit."""
NUMBERS = (
    (rf"(?<=\d){THIN_SPACE}+(?=\d{{3}}(?!\d))", ""),
    (rf"{FONTS}\s*\{{\s*({NUMBER})\s*\}}", r"\1"),
)
MONEY_AROUND = (
    (rf"\\text\s*\{{\s*(?:{CURRENCY}|{MONEY})\s*\}}", ""),
    (rf"{CURRENCY}\s*(?=-?[\d.])|(?<=[\d}}])\s*{CURRENCY}", ""),
    (rf"(?<![A-Za-z])(?:{MONEY})\s*(?={NUMBER})|(?<=\d)\s*{MONEY}(?![A-Za-z])", ""),
)
ENDS = ((r"(?:[\s.,;:。\u3001]|\\[,;: ]|\\$)+$", ""), (r"^(?:\s|\\[,;: ])+", ""))

WHOLE = (
    (rf"{FONTS}\s*\{{([^{{}}]*)\}}", r"\1"),
    (r"\*\*(.+)\*\*", r"\1"),
    (r"\\ensuremath\s*\{([^{}]*)\}", r"\1"),
    (r"\{([^{},]*)\}", r"\1"),
    (r"\$\$?([^$]*)\$\$?", r"\1"),
    (r"\\\((.*)\\\)", r"\1"),
    (r"\\\[(.*)\\\]", r"\1"),
    (rf"\\text\s*\{{[^{{}}\d=]*\}}\s*({VALUE}.*)", r"\1"),
    (rf"({VALUE})\s*{DEGREES}", r"\1"),
    (rf"({VALUE})\s*(?:\\text|\\mathrm)?\s*\{{?\s*~?\s*{UNITS}\s*\}}?", r"\1"),
)
"""Of a whole answer only: what is wrapped around it, words before a number, units behind it."""
WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'-]+[^\W\d_]+)*")
MOST_LAYERS = 4


def _compiled(rules: tuple[tuple[str, str], ...]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern, re.DOTALL), place) for pattern, place in rules]


IN_A_TEXT = _compiled((*SPELLINGS, *COLOURS, *LETTERS, *NUMBERS, *MONEY_AROUND))
AT_ITS_ENDS = _compiled(ENDS)
OF_THE_WHOLE = _compiled(WHOLE)


def plain(text: str) -> str:
    """Return a text in which numbers, colours, currencies and constants have one spelling."""
    for pattern, place in IN_A_TEXT:
        text = pattern.sub(place, text)
    return text


def bare(answer: str) -> str:
    """Return a whole answer without fonts, dollar signs, units and a full stop around it."""
    answer = _without_ends(plain(answer))
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
    for pattern, place in AT_ITS_ENDS:
        answer = pattern.sub(place, answer)
    return answer
