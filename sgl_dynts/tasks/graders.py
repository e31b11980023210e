"""Who says whether an answer is right: words, mathematics, multiple choice, programs.

A grader is given what a model wrote after its thinking. Mathematics and programs are judged in processes
of their own with a hard limit of seconds, from any thread.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from sgl_dynts.tasks.answers import normalize, said_answers
from sgl_dynts.tasks.choices import letter_of
from sgl_dynts.tasks.latex import bare, is_words
from sgl_dynts.tasks.limited import Limited, NotDone
from sgl_dynts.tasks.problems import Problem
from sgl_dynts.tasks.programs import completed, program_of, runs

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST_CHOICES = 8
"""Letters that count where a problem does not list its choices; the next one is the word "I"."""
RUN_PROGRAMS_HELP = "let programs that the model writes run on this machine"
MATHEMATICS_SECONDS = 10
REASON = re.compile(
    r"(?:\s*[,;:(.\u2014-]|\s)\s*(?:because|since|as|for|due to|given that|so that|which|where)\b"
    r"|\.\s+\S.*\s|\s*;\s*[a-z']+\s+[a-z]|\s-+\s*[a-z']+\s+[a-z]|\s*\([a-z']+\s[^()]*\)$",
    re.DOTALL,
)
"""What may follow an answer on its line without being part of it: a reason, or a sentence of its own."""
EMPHASIS = "*\"'`"
OPTION = re.compile(r"\(([a-z])\)\s+(?!(?:or|and)\b)[^()]+")
"""The letter of an option, with the option's text behind it."""
IN_BRACKETS = re.compile(r"\(\s*([^()]*[^()\s])\s*\)|\(?([a-z])\)?")


@dataclass(frozen=True)
class Verdict:
    """``said`` is the answer that was found, in the form in which equal answers are equal texts.

    Where ``is_judged`` is false, the grader came to no end; such an answer is not called right.
    """

    is_right: bool
    said: str
    is_judged: bool = True


class Grader(ABC):
    """Judges the answers of one kind of problem."""

    instruction: ClassVar[str] = ""
    """Put below the question."""

    def ask(self, problem: Problem) -> str:
        """Return the text to put to a model."""
        return "\n\n".join(filter(None, (problem.question, self.instruction)))

    @abstractmethod
    def judge(self, problem: Problem, text: str) -> Verdict:
        """Judge what follows the thinking of one output."""


class Words(Grader):
    """The same words in the same order; commas, arrows and brackets between them count as spaces.

    The words after the last "Answer:" count if there is one, else all of them.
    """

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Compare words."""
        said = _words(normalize(text).rpartition("Answer:")[2])
        return Verdict(said == _words(normalize(problem.answer)), " ".join(said))


class Exact(Grader):
    """The same text but for case, spaces and what stands around it; BIG-Bench Hard is asked so."""

    instruction = "End with a line that says 'Answer:' and then the answer alone."

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Compare the answer line or the last box, or the last line without them."""
        answers = said_answers(normalize(text))
        said = _plain(", ".join(answers[0]) if answers else "")
        gold = _plain(normalize(problem.answer))
        return Verdict(True, gold) if _tells(said, gold) else Verdict(False, said)


class Choice(Grader):
    """A multiple-choice question; the answer is a letter."""

    instruction = (
        "Think step by step, and put the letter of the right choice within \\boxed{}, such as \\boxed{A}."
    )

    def ask(self, problem: Problem) -> str:
        """Put the choices with their letters between question and instruction."""
        choices = [f"({letter}) {text}" for letter, text in zip(LETTERS, problem.choices, strict=False)]
        parts = (problem.question, "\n".join(choices), self.instruction)
        return "\n\n".join(filter(None, parts))

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Compare the letter boxed or told, or that of the choice whose text was told."""
        known = LETTERS[: len(problem.choices) or MOST_CHOICES]
        choices = dict(zip(LETTERS, map(normalize, problem.choices), strict=False))
        said = letter_of(normalize(text), known, choices)
        return Verdict(bool(said) and said == problem.answer.strip(" ().").upper(), said)


class Mathematics(Grader):
    """A number, an expression, a set, an interval..: equal by math-verify."""

    instruction = "Please reason step by step, and put your final answer within \\boxed{}."

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Compare the boxed answer, else the one told; not judged if that takes too long."""
        try:
            is_right, said = _mathematics(problem.answer, text)
        except NotDone:
            return Verdict(False, "", is_judged=False)
        return Verdict(is_right, said)


class Program(Grader):
    """A Python function that must pass tests; HumanEval is asked so.

    The program of the model is **run on this machine**, in a process of its own with limits on time and
    memory, and no other protection.
    """

    instruction = "Complete the function. Give all of it, with its imports, in one ```python block."

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Run the question's own lines, the block that defines the function, and then the tests."""
        code = completed(program_of(text, problem.entry_point), problem.entry_point, problem.question)
        stub = f"{problem.question}\n    pass\n"
        is_right = runs(stub, code, problem.tests, f"check({problem.entry_point})")
        return Verdict(is_right, code.strip())


_mathematics = Limited("sgl_dynts.tasks.mathematics:judge", MATHEMATICS_SECONDS)
GRADERS: dict[str, Grader] = {
    "words": Words(),
    "exact": Exact(),
    "choice": Choice(),
    "math": Mathematics(),
    "python": Program(),
}


def grader_of(problem: Problem) -> Grader:
    """Return who judges a problem.

    Raises:
        ValueError: nobody has that name.
    """
    if problem.grader not in GRADERS:
        raise ValueError(
            f"problem {problem.id}: grader={problem.grader!r} is unknown; known: {', '.join(GRADERS)}"
        )
    return GRADERS[problem.grader]


def check_graders(problems: Iterable[Problem], run_programs: bool) -> None:
    """Refuse problems that cannot be judged, before a model is asked.

    Args:
        problems: to judge later.
        run_programs: whether programs that a model writes may run on this machine.

    Raises:
        ValueError: a grader or its library is missing, or programs would run and must not.
    """
    has_math_verify = find_spec("math_verify") is not None
    for problem in problems:
        if isinstance(grader_of(problem), Mathematics) and not has_math_verify:
            raise ValueError(
                f"problem {problem.id}: grader='math' needs math-verify, which is not installed; "
                "pip install 'sgl-dynts[training]'"
            )
        if isinstance(grader_of(problem), Program) and not run_programs:
            raise ValueError(
                f"problem {problem.id}: grader='python' runs what the model writes on this machine; "
                "allow that with --run-programs, in a container best"
            )


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,;:()\[\]{}\"'`*.]+|->|→", text) if word]


def _plain(text: str) -> str:
    """Return a text without case, spaces and what stands around it; brackets only as a pair."""
    plain = " ".join(bare(text).casefold().strip(" .\t\n*\"'`$").split())
    within = IN_BRACKETS.fullmatch(plain)
    return next(filter(None, within.groups())) if within else plain


def _tells(said: str, gold: str) -> bool:
    """Whether an answer line is the answer, or that and then a reason for it."""
    if said == gold:
        return True
    option = OPTION.fullmatch(said)
    if option and option[1] == gold:
        return True
    if not gold or not said.startswith(gold):
        return False
    behind = said[len(gold) :].lstrip(EMPHASIS)
    if is_words(gold) and behind.startswith("!"):
        behind = "." + behind.strip(EMPHASIS + "!")
    return behind in ("", ".") or REASON.match(behind) is not None
