"""The demo task: ledgers, multi-step arithmetic problems with long and sparse traces.

A ledger opens with a few constants and derives one new variable per entry, mod 10. The trace that
solves it works the entries off in order: it recalls the operand, computes, writes the result down as
one record word such as ``x=7`` and then adds two remarks that say nothing about any value. Entries
and the final queries read variables that were written down long before, so the few record words are
what a reader of the trace must still hold when they come up again, and nearly all else is padding.

Every text is a space-joined string of words from `vocabulary()`. Standard library only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sgl_dynts.tasks import problems
from sgl_dynts.tasks.problems import SPLITS

VARIABLES = tuple("abcdefghijklmnopqrstuvwx")
WIDE_VARIABLES = (*VARIABLES, *"ABCDEFGHIJKL")
"""Of wide ledgers, which are longer than the demo's model knows words for."""
DIGITS = tuple("0123456789")
OPERATIONS = tuple(f"{sign}{n}" for sign in "+*" for n in range(1, 10))
NUM_CONSTANTS = 4
NUM_QUERIES = 3
DEFAULT_STEPS = 14
MIN_STEPS = 4
MAX_STEPS = len(VARIABLES) - NUM_CONSTANTS
MAX_WIDE_STEPS = len(WIDE_VARIABLES) - NUM_CONSTANTS

TRAIN_SEEDS = SPLITS["train"]
VALIDATION_SEEDS = SPLITS["validation"]
TEST_SEEDS = SPLITS["test"]

BOS, EOS, PAD, UNKNOWN = "<bos>", "<eos>", "<pad>", "<unk>"
THINK, END_THINK = "<think>", "</think>"
SPECIAL_WORDS = (PAD, BOS, EOS, UNKNOWN)
STRUCTURE_WORDS = (THINK, END_THINK, ";", "?", "brief", "from", "recall", "is", "so", "done")

# Two remarks per entry, chosen by the digit of its operation, so that a greedy trace is reproducible
# and no remark tells a variable or a value. No word occurs twice: every word but the first of a
# remark follows from the word before it, and nobody has a reason to look an old remark up.
OPENING_REMARKS = (
    "the clerk dips his old pen while black ink settles below",
    "cold wind moves loose paper but every lamp still burns on",
    "nobody inside this long room speaks about today's grey weather yet",
    "dust lies upon upper shelves where older books rest in silence",
    "outside some cart rolls by and two tall windows shake gently",
)
CLOSING_REMARKS = (
    "then wooden rulers return beside neat stacks of unopened letters again",
    "fine sand slides off each sheet into one shallow copper tray",
    "near that stove our cat sleeps curled under an empty chair",
    "somewhere church bells ring twice before noon across their quiet harbour",
    "candles flicker as rain taps against roof tiles until evening falls",
)


@dataclass(frozen=True)
class Entry:
    """One step of a ledger: ``result = operand <operation>`` mod 10."""

    number: int
    result: str
    operand: str
    operation: str
    operand_value: int
    result_value: int


@dataclass(frozen=True)
class Problem:
    """One ledger with its reference solution; every text is words joined by single spaces."""

    seed: int
    num_steps: int
    question: str
    trace: str
    answer: str

    @property
    def prompt(self) -> str:
        """The text a model continues: what the chat template renders for `question`."""
        return f"{BOS} {self.question} {THINK}"

    @property
    def completion(self) -> str:
        """The reference continuation of `prompt`: trace, end of thinking, answer, end of text."""
        return f"{self.trace} {END_THINK} {self.answer} {EOS}"


def record(variable: str, value: int) -> str:
    """Return the single word that writes down ``variable = value``."""
    return f"{variable}={value}"


def apply_operation(operation: str, value: int) -> int:
    """Return `value` after `operation` (``+3`` or ``*7``), mod 10."""
    n = int(operation[1:])
    return (value + n if operation[0] == "+" else value * n) % 10


def vocabulary() -> list[str]:
    """Return the words of the demo's model in the order of their token ids, the special words first."""
    remarks = " ".join(OPENING_REMARKS + CLOSING_REMARKS).split()
    groups = (SPECIAL_WORDS, STRUCTURE_WORDS, VARIABLES, DIGITS, OPERATIONS)
    return [
        word
        for group in (*groups, _numbers(1, MAX_STEPS), _records(VARIABLES), remarks)
        for word in group
    ]


def wide_vocabulary() -> list[str]:
    """Return the words of wide ledgers: those of `vocabulary`, the same ids, and more behind them."""
    more = WIDE_VARIABLES[len(VARIABLES) :]
    return [*vocabulary(), *more, *_numbers(MAX_STEPS + 1, MAX_WIDE_STEPS), *_records(more)]


class Vocabulary:
    """Words to token ids and back, as the tokenizers of all ledger models do it."""

    def __init__(self) -> None:
        """Number the words of `wide_vocabulary()`."""
        self.words = wide_vocabulary()
        self.ids = {word: index for index, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of words that are all in the vocabulary."""
        return [self.ids[word] for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Return the words of token ids, joined by spaces."""
        return " ".join(self.words[index] for index in ids)


def make_problem(
    seed: int, num_steps: int = DEFAULT_STEPS, *, brief: bool = False, wide: bool = False
) -> Problem:
    """Return the ledger of `seed`, the same one in every run.

    Args:
        seed: selects the problem among those of one length.
        num_steps: entries, `MIN_STEPS` to `MAX_STEPS`, or to `MAX_WIDE_STEPS` of a wide ledger; sets the
            length of question and trace.
        brief: ask for a trace without its two remarks per entry.
        wide: draw from `WIDE_VARIABLES`.

    Raises:
        ValueError: `num_steps` is out of its range.
    """
    variables, most = (WIDE_VARIABLES, MAX_WIDE_STEPS) if wide else (VARIABLES, MAX_STEPS)
    if not MIN_STEPS <= num_steps <= most:
        raise ValueError(f"num_steps is {num_steps}; choose {MIN_STEPS} to {most}")
    rng = random.Random(f"{'wide-' if wide else ''}ledger-{num_steps}-{seed}")
    names = rng.sample(variables, NUM_CONSTANTS + num_steps)
    constants = {name: rng.randrange(10) for name in names[:NUM_CONSTANTS]}
    results = names[NUM_CONSTANTS:]
    queries = rng.sample(results[: num_steps - min_age(num_steps)], NUM_QUERIES)
    entries = _draw_entries(rng, constants, results, queries)
    values = {entry.result: entry.result_value for entry in entries}
    return Problem(
        seed=seed,
        num_steps=num_steps,
        question=_question(constants, entries, queries, brief),
        trace=" ".join(_entry_text(entry, brief) for entry in entries),
        answer=" ".join(f"{name} {record(name, values[name])}" for name in queries),
    )


def make_problem_of_length(seed: int, num_steps: int) -> Problem:
    """Return `make_problem`'s ledger, of up to `MAX_WIDE_STEPS` entries, a wide one above `MAX_STEPS`."""
    return make_problem(seed, num_steps, wide=num_steps > MAX_STEPS)


def make_task_problem(seed: int, num_steps: int) -> problems.Problem:
    """Return `make_problem_of_length`'s ledger in the form that all tasks share."""
    problem = make_problem_of_length(seed, num_steps)
    return problems.Problem(
        id=f"ledger-{num_steps}-{seed}",
        task=f"ledger-{num_steps}",
        question=problem.question,
        answer=problem.answer,
        grader="words",
        trace=problem.trace,
        critical=read_again(problem),
    )


def read_again(problem: Problem) -> tuple[str, ...]:
    """Return the records that a trace writes down and that it or its answer reads later, in order.

    The first place of each in the trace is where it is written down.
    """
    words = f"{problem.trace} {problem.answer}".split()
    written = [words[i + 1] for i, word in enumerate(words) if word == "so"]
    return tuple(text for text in written if words.count(text) > 1)


def min_age(num_steps: int) -> int:
    """Return how many entries ago a derived variable was written, at least, when it is read."""
    return max(1, num_steps // 2 - 1)


def is_correct(problem: Problem, text: str) -> bool:
    """Whether `text` answers `problem`; a trace up to ``</think>`` in front is skipped."""
    words = text.rpartition(END_THINK)[2].split()
    if EOS in words:
        words = words[: words.index(EOS)]
    return words == problem.answer.split()


def _numbers(first: int, last: int) -> list[str]:
    return [f"#{k}" for k in range(first, last + 1)]


def _records(variables: tuple[str, ...]) -> list[str]:
    return [record(variable, value) for variable in variables for value in range(10)]


def _draw_entries(
    rng: random.Random, constants: dict[str, int], results: list[str], queries: list[str]
) -> list[Entry]:
    """Derive `results` in order, each from an old unread result if there is one, or a constant.

    A result is read once, by an entry or by a query: its own entry is the only place in the trace
    that tells its value when it is read.
    """
    values = dict(constants)
    age = min_age(len(results))
    unread: list[str] = []
    entries: list[Entry] = []
    for index, result in enumerate(results):
        if index >= age and results[index - age] not in queries:
            unread.append(results[index - age])
        operand = rng.choice(unread or list(constants))
        if operand in unread:
            unread.remove(operand)
        operation = rng.choice(OPERATIONS)
        values[result] = apply_operation(operation, values[operand])
        entries.append(Entry(index + 1, result, operand, operation, values[operand], values[result]))
    return entries


def _question(constants: dict[str, int], entries: list[Entry], queries: list[str], brief: bool) -> str:
    style = ["brief"] if brief else []
    given = [record(name, value) for name, value in constants.items()]
    steps = [f"#{e.number} {e.result} {e.operand} {e.operation}" for e in entries]
    return " ".join([*style, *given, *steps, "?", *queries])


def _entry_text(entry: Entry, brief: bool) -> str:
    e = entry
    parts = [
        f"#{e.number} {e.result} from {e.operand} {e.operation} ;",
        f"recall {e.operand} {record(e.operand, e.operand_value)} ;",
        f"{e.operand_value} {e.operation} is {e.result_value} ;",
        f"so {record(e.result, e.result_value)} ;",
    ]
    if not brief:
        digit = int(e.operation[1:])
        opening = OPENING_REMARKS[digit % len(OPENING_REMARKS)]
        closing = CLOSING_REMARKS[digit // 2 % len(CLOSING_REMARKS)]
        parts += [f"{opening} ;", f"{closing} ;"]
    return " ".join([*parts, f"done #{e.number}"])
