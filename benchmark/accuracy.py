"""What is answered right when a request holds only part of its trace: tasks x policies x budgets.

All cells run in one server, the policy and the windows chosen per request, on the same problems.
A cell that is in the results already is not run again.

    python -m benchmark.accuracy --steps 10 14 --budget-fraction 0.3 0.5 --num-problems 500
    python -m benchmark.accuracy --model FOLDER --preset aime24=aime24.jsonl math500=math500.jsonl
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmark.harness.accuracy_tasks import Task, check_words, choose_tasks
from benchmark.harness.charts import draw_accuracy
from benchmark.harness.grading import Reply, ends_in_loop, mean_held, summarize
from benchmark.harness.presets import LLAMA, QWEN
from benchmark.harness.provenance import RESULTS, keep, parser_of, provenance
from benchmark.harness.tables import answers
from sgl_dynts import demo_model_path
from sgl_dynts.checkpoint import find_predictor_if_any
from sgl_dynts.config import PAPER_CONFIG, DynTSConfig
from sgl_dynts.harness.client import Client
from sgl_dynts.harness.server import ServerError, served, unwind_on_sigterm
from sgl_dynts.policies import FULL, needing, policies
from sgl_dynts.tasks.graders import GRADERS, RUN_PROGRAMS_HELP, grader_of
from sgl_dynts.tasks.problems import SPLITS, Problem
from sgl_dynts.training.language import Language

SETTINGS = (
    *("task", "model", "seed", "policy", "target", "budget_fraction", "local_share", "keep_ratio"),
    *("n", "split", "temperature", "samples"),
)
BESIDE = (
    *(("loops", "{loop_rate:.2f}"), ("tokens/solved", "{tokens_per_solved}")),
    ("not judged", "{num_not_judged}"),
)
"""What is printed beside the columns of the documents."""


@dataclass(frozen=True)
class Cell:
    """One row of the table; ``budget_fraction`` 1 is the full cache."""

    task: Task
    policy: str
    budget_fraction: float


@dataclass(frozen=True)
class Subject:
    """The model that is asked: its name, and what its predictor says of itself, if it has one."""

    name: str
    target: str | None
    windows: DynTSConfig

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Subject":
        """Find the model's predictor, or the named one.

        Raises:
            ValueError: a predictor is not usable, or a policy needs one and there is none.
        """
        source = find_predictor_if_any(args.model, args.predictor)
        if source is not None:
            header = source.header
            return cls(header.base_model, header.target, header.windows)
        needy = set(args.policies or ()) & set(needing("predictor"))
        if needy:
            raise ValueError(
                f"--policies {' '.join(sorted(needy))}: {args.model} has no predictor; name one with "
                "--predictor, or leave these policies out"
            )
        return cls(args.model.resolve().name, None, PAPER_CONFIG)


def policies_of(args: argparse.Namespace, subject: Subject) -> list[str]:
    """Return the policies that were asked for, by default all that the model can be served with."""
    without = () if subject.target is not None else needing("predictor")
    return args.policies or [name for name in policies() if name not in without]


def proportions_of(args: argparse.Namespace, subject: Subject, cell: Cell) -> DynTSConfig:
    """Return what a cell's windows are scaled from: the predictor's own, but for what was asked."""
    config = subject.windows
    if cell.task.windows is not None:
        return cell.task.windows
    if cell.policy == FULL:
        return config
    ratio, share = args.keep_ratio, args.local_share
    return replace(
        config,
        keep_ratio=config.keep_ratio if ratio is None else ratio,
        local_window=config.local_window if share is None else round(share * config.budget),
    )


def check_windows(args: argparse.Namespace, tasks: list[Task]) -> None:
    """Build the windows of every cell whose traces' length is known before a server runs.

    Raises:
        ValueError: no windows can be made of a budget and these proportions.
    """
    subject = Subject.of(args)
    for cell in cells(args, tasks):
        if cell.task.by_reference:
            try:
                cell.task.windows_of(cell.budget_fraction, proportions_of(args, subject, cell), None)
            except ValueError as error:
                raise ValueError(
                    f"{cell.task.name}, --budget-fraction {cell.budget_fraction:g}: {error}"
                ) from error


class Run:
    """A server, and the settings that all cells share."""

    def __init__(self, args: argparse.Namespace, client: Client, language: Language) -> None:
        self.args = args
        self.client = client
        self.language = language
        self.subject = Subject.of(args)
        self.device = device_of(client.call("/server_info")["device"])

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Answer all problems of a cell and return its object."""
        jobs = [problem for problem in cell.task.problems for _ in range(cell.task.samples)]
        full = None if cell.policy == FULL else self.find(Cell(cell.task, FULL, 1.0))
        full_len = None if full is None else full["mean_output_len"]
        proportions = proportions_of(self.args, self.subject, cell)
        windows = cell.task.windows_of(cell.budget_fraction, proportions, full_len)
        pool = ThreadPoolExecutor(self.args.concurrency)
        try:
            answers = list(pool.map(lambda problem: self._ask(cell, windows, problem), jobs))
        finally:  # a signal is not kept waiting: the server that everyone waits for is ended next
            pool.shutdown(wait=False, cancel_futures=True)
        replies = [self._judge(cell, *pair) for pair in zip(jobs, answers, strict=True)]
        k = cell.task.samples
        by_problem = [replies[i : i + k] for i in range(0, len(replies), k)]
        return (
            self._settings(cell)
            | summarize(by_problem, full_len)
            | {"budget": windows.budget, "local_window": windows.local_window}
            | provenance()
            | {"device": self.device}
        )

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """Return a cell's object if it was measured already."""
        path = self.args.out
        results = json.loads(path.read_text()) if path.exists() else []
        wanted = self._settings(cell)
        return next((old for old in results if wanted.items() <= old.items()), None)

    def _settings(self, cell: Cell) -> dict[str, Any]:
        proportions = proportions_of(self.args, self.subject, cell)
        return {
            "task": cell.task.name,
            "model": self.subject.name,
            "seed": self.args.seed,
            "policy": cell.policy,
            "target": self.subject.target if cell.policy in needing("predictor") else None,
            "budget_fraction": cell.budget_fraction,
            "local_share": round(proportions.local_window / proportions.budget, 3),
            "keep_ratio": proportions.keep_ratio,
            "n": len(cell.task.problems),
            "split": cell.task.split,
            "temperature": cell.task.sampling.temperature,
            "samples": cell.task.samples,
        }

    def _ask(self, cell: Cell, windows: DynTSConfig, problem: Problem) -> dict[str, Any]:
        prompt = self.language.prompt(problem)
        dynts = {
            "policy": cell.policy,
            **windows.given(),
            "return_compactions": True,
        }
        sampling = cell.task.sampling
        params = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "max_new_tokens": min(cell.task.most_tokens(problem), self.language.max_len - len(prompt)),
            "custom_params": {"dynts": dynts},
        }
        return self.client.call("/generate", {"input_ids": prompt, "sampling_params": params})

    def _judge(self, cell: Cell, problem: Problem, reply: dict[str, Any]) -> Reply:
        meta, tokens = reply["meta_info"], reply["output_ids"]
        numbers = meta["dynts"]
        if numbers["policy"] != cell.policy:
            raise RuntimeError(f"asked for policy {cell.policy}, served {numbers['policy']}")
        verdict = grader_of(problem).judge(problem, self.language.answer(tokens))
        return Reply(
            is_right=verdict.is_right,
            answer=verdict.said,
            is_judged=verdict.is_judged,
            output_len=len(tokens),
            is_truncated=meta["finish_reason"]["type"] == "length",
            is_loop=ends_in_loop(tokens),
            mean_kv=mean_held(
                meta["prompt_tokens"], len(tokens), numbers["compacted_at"], numbers["dropped_then"]
            ),
            peak_kv=numbers["peak_window_len"],
        )


def main() -> None:
    """Run the cells and report them."""
    args = parse()
    try:
        tasks = choose_tasks(args)
        check_windows(args, tasks)
        language = Language(str(args.model), args.think_start, args.think_end)
        check_words(tasks, language)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    unwind_on_sigterm()
    print(*answers([], *BESIDE), sep="\n", flush=True)
    try:
        with served(args.url, args.model, server_words(args)) as client:
            run_cells(Run(args, client, language), tasks)
    except ServerError as error:
        sys.exit(f"error: {error}")
    draw_accuracy(args.out.with_suffix(".png"), json.loads(args.out.read_text()))


def run_cells(run: Run, tasks: list[Task]) -> None:
    """Measure what is not in the results yet, keep and print each cell."""
    for cell in cells(run.args, tasks):
        result = run.find(cell)
        if result is None:
            result = run.measure(cell)
            keep(run.args.out, result, SETTINGS)
        print(answers([{"num_not_judged": 0} | result], *BESIDE)[-1], flush=True)


def device_of(kind: str) -> str:
    """Return what a server runs on, a GPU by its name if it is this machine's."""
    return torch.cuda.get_device_name() if kind == "cuda" and torch.cuda.is_available() else kind


def server_words(args: argparse.Namespace) -> str:
    """Return the arguments of a server of our own, beside its model."""
    words = ["--dynts-think-start", args.think_start, "--dynts-think-end", args.think_end]
    if args.predictor is not None:
        words += ["--dynts-predictor", str(args.predictor)]
    return f"{shlex.join(words)} {args.server_args}".strip()


def cells(args: argparse.Namespace, tasks: list[Task]) -> Iterator[Cell]:
    """Yield the cells in order, the full cache first: the others' lengths are compared with its."""
    names = policies_of(args, Subject.of(args))
    for task in tasks:
        yield Cell(task, FULL, 1.0)
        for fraction in task.fractions(args.budget_fraction):
            for policy in names:
                if policy != FULL:
                    yield Cell(task, policy, fraction)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("accuracy", __doc__)
    add = parser.add_argument
    add("--url", help="of a running server with DynTS that serves --model; default: start one")
    add("--model", type=Path, default=demo_model_path(), help="folder of the model")
    add("--predictor", type=Path, help=PREDICTOR_HELP)
    add("--think-start", default="<think>", help="text that opens thinking; need not ever come")
    add("--think-end", default="</think>", help="text that closes it; without one all is thinking")
    add("--seed", type=int, default=1, help="the model was trained with; recorded, nothing else")
    add("--server-args", default="", help="more arguments for a server of our own")
    add("--steps", nargs="+", type=int, default=[10, 14], help="ledger entries, a task for each")
    add("--problems", nargs="+", type=Path, default=[], help="files to ask instead of ledgers")
    add("--preset", nargs="+", default=[], metavar="NAME=FILE", help=PRESET_HELP)
    add("--family", choices=(QWEN, LLAMA), default=QWEN, help="whose windows a preset takes")
    add("--grader", choices=GRADERS, help="of --problems that name none; default: exact")
    add("--run-programs", action="store_true", help=RUN_PROGRAMS_HELP)
    add("--policies", nargs="+", choices=list(policies()), help="default: all that can be served")
    add("--budget-fraction", nargs="+", type=float, default=[0.3, 0.4, 0.5, 0.7], help=FRACTION_HELP)
    add("--local-share", type=float, help=f"local window over budget; {PROPORTIONS_HELP}")
    add("--keep-ratio", type=float, help=PROPORTIONS_HELP)
    add("--num-problems", type=int, default=500)
    add("--split", choices=SPLITS, default="test")
    add("--temperature", type=float, help="default: the preset's, else greedy")
    add("--top-p", type=float)
    add("--top-k", type=int, help="0: all")
    add("--max-new-tokens", type=int, help="default: 16384; a ledger is cut by its own length")
    add("--samples", type=int, help="per problem; default: the preset's 5, else 1")
    add("--concurrency", type=int, default=64, help="requests in flight")
    add("--out", type=Path, default=RESULTS / "accuracy.json", help="a plot is put beside it")
    args = parser.parse_args(arguments)
    for name in ("local_share", "keep_ratio"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1:
            parser.error(f"--{name.replace('_', '-')} {value:g} must lie between 0 and 1")
    return args


FRACTION_HELP = (
    "budgets, as shares of a trace's tokens, the question counted in; a preset has its own budget"
)
PROPORTIONS_HELP = "of ledgers and files; default: as the predictor recommends, else the paper's"
PREDICTOR_HELP = "file or folder; default: the model's own. Policies that need none run without one"
PRESET_HELP = "benchmarks with the paper's settings, problems from files"

if __name__ == "__main__":
    main()
