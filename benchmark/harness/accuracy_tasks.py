"""What `benchmark.accuracy` asks: ledgers, files of problems, benchmarks as the paper sets them."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from benchmark.harness.presets import PRESETS, SAMPLES, SAMPLING
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo.ledger import MAX_STEPS, MAX_WIDE_STEPS, make_task_problem
from sgl_dynts.tasks.graders import check_graders, grader_of
from sgl_dynts.tasks.problems import Problem, read_problems, seeds_of
from sgl_dynts.training.endpoint import Sampling
from sgl_dynts.training.language import Language

MOST_INFLATION = 1.25
"""A ledger is cut at so many times the length of the reference solution."""
ENDS = 2
"""Tokens of a ledger's output beside trace and answer: the end of thinking and of text."""


@dataclass(frozen=True)
class Task:
    """Problems, with what it takes to ask them.

    ``windows`` are a preset's; without them budgets are shares of a trace. ``by_reference``: traces are
    as long as the reference solutions, a token a word; else they are measured with the full cache.
    """

    name: str
    problems: list[Problem]
    sampling: Sampling
    samples: int
    split: str
    windows: DynTSConfig | None = None
    by_reference: bool = False

    def most_tokens(self, problem: Problem) -> int:
        """Return where an output is cut."""
        if not self.by_reference:
            return self.sampling.max_new_tokens
        words = len(problem.trace.split()) + len(problem.answer.split()) + ENDS
        return round(MOST_INFLATION * words)

    def windows_of(
        self, fraction: float, recommended: DynTSConfig, full_len: float | None
    ) -> DynTSConfig:
        """Return a preset's windows, else the recommended ones scaled to this share of a trace.

        Args:
            fraction: of the trace's tokens; the question counts in the budget.
            recommended: of the predictor.
            full_len: mean output length with the full cache, None while that is being measured.
        """
        if self.windows is not None:
            return self.windows
        if self.by_reference:
            full_len = round(fmean(len(problem.trace.split()) for problem in self.problems))
        if full_len is None:
            return recommended
        budget = round(fraction * full_len)
        local_window = round(recommended.local_window * budget / recommended.budget)
        return DynTSConfig(budget, local_window, recommended.keep_ratio)

    def fractions(self, wanted: list[float]) -> list[float]:
        """Return the budgets to run; a preset's is told as a share of the longest output."""
        if self.windows is None:
            return wanted
        return [round(self.windows.budget / self.sampling.max_new_tokens, 4)]


def choose_tasks(args: argparse.Namespace) -> list[Task]:
    """Return the tasks of a command line: files and presets if any are named, else ledgers.

    Raises:
        ValueError: a file or a preset cannot be used; says which.
    """
    named = [_preset_task(args, text) for text in args.preset] + [
        _file_task(args, path) for path in args.problems
    ]
    tasks = named or [_ledger_task(args, steps) for steps in args.steps]
    for task in tasks:
        check_graders(task.problems, args.run_programs)
    return tasks


def check_words(tasks: list[Task], language: Language) -> None:
    """Refuse ledgers that a model's tokenizer does not read as a token for each word.

    It may lack words. And transformers reads a model of type qwen2 with Qwen2's own tokenizer, whatever
    the folder's ``tokenizer.json`` says.

    Raises:
        ValueError: names the task.
    """
    unknown = language.tokenizer.unk_token_id
    for task in tasks:
        if not task.by_reference:
            continue
        problem = task.problems[0]
        if unknown is not None and unknown in language.prompt(problem):
            raise ValueError(
                f"{task.name}: the model's tokenizer has no token for some of its words; the demo's "
                f"model knows ledgers of at most {MAX_STEPS} entries, a large one of {MAX_WIDE_STEPS}"
            )
        question = grader_of(problem).ask(problem)
        num_words, num_tokens = len(question.split()), len(language.encode(question))
        if num_tokens != num_words:
            raise ValueError(
                f"{task.name}: {type(language.tokenizer).__name__}, which transformers takes for this "
                f"model, makes {num_tokens} tokens of a question of {num_words} words: ledgers are for "
                "models that read each word as a token"
            )


def _ledger_task(args: argparse.Namespace, steps: int) -> Task:
    problems = [make_task_problem(seed, steps) for seed in seeds_of(args.split, args.num_problems)]
    sampling = _sampling(args, Sampling(0.0, 1.0, 0, 0))
    name, samples = f"ledger-{steps}", args.samples or 1
    return Task(name, problems, sampling, samples, args.split, by_reference=True)


def _file_task(args: argparse.Namespace, path: Path) -> Task:
    problems = read_problems(path, args.grader)[: args.num_problems]
    sampling = _sampling(args, replace(SAMPLING, temperature=0.0))
    return Task(problems[0].task, problems, sampling, args.samples or 1, path.name)


def _preset_task(args: argparse.Namespace, text: str) -> Task:
    name, _, file = text.partition("=")
    if name not in PRESETS or not file:
        raise ValueError(f"--preset {text}: give NAME=FILE, NAME one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    problems = read_problems(Path(file), preset.grader, name)[: args.num_problems]
    windows = preset.windows[args.family]
    samples = args.samples or SAMPLES
    return Task(name, problems, _sampling(args, SAMPLING), samples, Path(file).name, windows)


def _sampling(args: argparse.Namespace, default: Sampling) -> Sampling:
    """Return what the command line says, a task's own where it says nothing."""
    names = ("temperature", "top_p", "top_k", "max_new_tokens")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return replace(default, **given)
