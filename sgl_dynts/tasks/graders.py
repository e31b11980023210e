"""Who says whether an answer is right: words, mathematics, multiple choice, programs.

A grader is given what a model wrote after its thinking. Mathematics is judged by math-verify, which
ends what takes too long by a signal: call `Grader.judge` from the main thread.
"""

import re
import resource
import secrets
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from sgl_dynts.tasks.problems import Problem

ANSWER_LINE = re.compile(r"answer\s*(?:is)?\s*:?\s*(.*)", re.IGNORECASE)
BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Z])\)?\s*\}?\s*\}")
LETTER = re.compile(r"\b([A-Z])\b")
CODE_BLOCK = re.compile(r"```(?:python|py)?\s*\n(.*?)```", re.DOTALL)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST_CHOICES = 8
"""Letters that count where a problem does not list its choices; the next one is the word "I"."""
RUN_PROGRAMS_HELP = "let programs that the model writes run on this machine"
PROGRAM_SECONDS = 10
PROGRAM_BYTES = 1 << 30


@dataclass(frozen=True)
class Verdict:
    """``said`` is the answer that was found, in the form in which equal answers are equal texts."""

    is_right: bool
    said: str


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
        said = _words(text.rpartition("Answer:")[2])
        return Verdict(said == _words(problem.answer), " ".join(said))


class Exact(Grader):
    """The same text but for case, spaces and what stands around it; BIG-Bench Hard is asked so."""

    instruction = "End with a line that says 'Answer:' and then the answer alone."

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Compare the answer line, or the last line without one."""
        said = _plain(_last_answer(text))
        return Verdict(said == _plain(problem.answer), said)


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
        """Compare the last boxed letter, or the last one of the answer line."""
        known = LETTERS[: len(problem.choices) or MOST_CHOICES]
        letters = BOXED.findall(text) or LETTER.findall(_last_answer(text))
        letters = [letter for letter in letters if letter in known]
        said = letters[-1] if letters else ""
        return Verdict(said == problem.answer.strip(" ()."), said)


class Mathematics(Grader):
    """A number, an expression, a set, an interval..: equal by math-verify."""

    instruction = "Please reason step by step, and put your final answer within \\boxed{}."

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Compare what math-verify finds, boxed first, with the answer as LaTeX."""
        from math_verify import parse, verify  # half a second and sympy, for those who need it

        said = parse(text)
        marked = any(mark in problem.answer for mark in ("$", "\\boxed", "\\("))
        gold = parse(problem.answer if marked else f"${problem.answer}$")
        return Verdict(verify(gold, said), str(said[0]) if said else "")


class Program(Grader):
    """A Python function that must pass tests; HumanEval is asked so.

    The program of the model is **run on this machine**, in a process of its own with limits on time and
    memory, and no other protection.
    """

    instruction = "Complete the function. Give all of it, with its imports, in one ```python block."

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Run the last block of code, the question's own lines above it, and then the tests."""
        blocks = CODE_BLOCK.findall(text)
        code = blocks[-1] if blocks else text
        stub = f"{problem.question}\n    pass"
        program = "\n\n".join([stub, code, problem.tests, f"check({problem.entry_point})"])
        return Verdict(runs(program), code.strip())


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
        ValueError: nobody has a grader's name, or programs would run and must not.
    """
    for problem in problems:
        if isinstance(grader_of(problem), Program) and not run_programs:
            raise ValueError(
                f"problem {problem.id}: grader='python' runs what the model writes on this machine; "
                "allow that with --run-programs, in a container best"
            )


def runs(program: str) -> bool:
    """Whether a program runs to its last line without an error, within time and memory."""
    reached = secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-"],
                input=f"{program}\nprint({reached!r})\n",
                cwd=folder,
                env={},
                text=True,
                capture_output=True,
                timeout=PROGRAM_SECONDS,
                preexec_fn=_limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and done.stdout.rstrip().endswith(reached)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (PROGRAM_BYTES, PROGRAM_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PROGRAM_SECONDS, PROGRAM_SECONDS))


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,;:()\[\]{}\"'`*.]+|->|→", text) if word]


def _last_answer(text: str) -> str:
    """Return what follows the last "answer is" or "answer:", or else the last line."""
    found = ANSWER_LINE.findall(text)
    lines = [line for line in text.splitlines() if line.strip()]
    return found[-1] if found else (lines[-1] if lines else "")


def _plain(text: str) -> str:
    return " ".join(text.casefold().strip(" .\t\n*\"'`()$").split())
