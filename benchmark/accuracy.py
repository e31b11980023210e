"""What is answered right when a request holds only part of its trace: tasks x policies x budgets.

All cells run in one server, the policy and the windows chosen per request, on the same problems.
A cell that is in the results already is not run again.

    python -m benchmark.accuracy --steps 10 14 --budget-fraction 0.3 0.5 --num-problems 500
"""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmark.charts import draw_accuracy
from benchmark.grading import Reply, ends_in_loop, mean_held, summarize
from benchmark.provenance import RESULTS, keep, parser_of, provenance
from benchmark.served import Client, served
from sgl_dynts import demo_model_path
from sgl_dynts.checkpoint import PredictorHeader, find_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo import ledger
from sgl_dynts.demo.evaluate import SPLITS, held_out
from sgl_dynts.demo.ledger import Problem, Vocabulary
from sgl_dynts.policies import FULL, NEED_PREDICTOR, POLICIES

SETTINGS = (
    *("task", "model", "seed", "policy", "target", "budget_fraction", "n"),
    *("split", "temperature", "samples"),
)
MOST_INFLATION = 1.25
"""A request is cut at so many times the length of the reference solution."""
HEAD = (
    f"{'task':<11}{'policy':<11}{'budget':>7}{'n':>6}{'right %':>9}  {'95 % interval':<15}{'mean KV':>8}"
    f"{'peak KV':>8}{'length':>8}{'loops':>7}{'cut':>7}{'tokens/solved':>14}"
)


@dataclass(frozen=True)
class Task:
    """Ledgers of one length, with what it takes to ask and to judge."""

    num_steps: int
    problems: list[Problem]

    @property
    def name(self) -> str:
        """The task's name in the results."""
        return f"ledger-{self.num_steps}"

    @cached_property
    def trace_len(self) -> int:
        """Mean tokens of a reference trace: what a budget fraction is a fraction of."""
        return round(fmean(len(problem.trace.split()) for problem in self.problems))

    def windows(self, fraction: float, recommended: DynTSConfig) -> DynTSConfig:
        """Return the recommended windows scaled to this share of the trace; the question counts too."""
        budget = round(fraction * self.trace_len)
        local_window = round(recommended.local_window * budget / recommended.budget)
        return DynTSConfig(budget, local_window, recommended.keep_ratio)


@dataclass(frozen=True)
class Cell:
    """One row of the table; ``budget_fraction`` 1 is the full cache."""

    task: Task
    policy: str
    budget_fraction: float


class Run:
    """A server, and the settings that all cells share."""

    def __init__(self, args: argparse.Namespace, client: Client) -> None:
        self.args = args
        self.client = client
        self.vocabulary = Vocabulary()
        self.header: PredictorHeader = find_predictor(args.model).header
        self.device = client.call("/server_info")["device"]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Answer all problems of a cell and return its object."""
        jobs = [problem for problem in cell.task.problems for _ in range(self.args.samples)]
        with ThreadPoolExecutor(self.args.concurrency) as pool:
            replies = list(pool.map(lambda problem: self._answer(cell, problem), jobs))
        k = self.args.samples
        by_problem = [replies[i : i + k] for i in range(0, len(replies), k)]
        full = None if cell.policy == FULL else self.find(Cell(cell.task, FULL, 1.0))
        numbers = summarize(by_problem, None if full is None else full["mean_output_len"])
        windows = cell.task.windows(cell.budget_fraction, self.header.config)
        return (
            self._settings(cell)
            | numbers
            | {"budget": windows.budget, "local_window": windows.local_window}
            | {"keep_ratio": windows.keep_ratio}
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
        return {
            "task": cell.task.name,
            "model": self.header.base_model,
            "seed": self.args.seed,
            "policy": cell.policy,
            "target": self.header.target if cell.policy in NEED_PREDICTOR else None,
            "budget_fraction": cell.budget_fraction,
            "n": len(cell.task.problems),
            "split": self.args.split,
            "temperature": self.args.temperature,
            "samples": self.args.samples,
        }

    def _answer(self, cell: Cell, problem: Problem) -> Reply:
        windows = cell.task.windows(cell.budget_fraction, self.header.config)
        dynts = {
            "policy": cell.policy,
            "budget": windows.budget,
            "local_window": windows.local_window,
            "keep_ratio": windows.keep_ratio,
            "return_compactions": True,
        }
        params = {
            "temperature": self.args.temperature,
            "max_new_tokens": round(MOST_INFLATION * len(problem.completion.split())),
            "custom_params": {"dynts": dynts},
        }
        prompt = self.vocabulary.encode(problem.prompt)
        reply = self.client.call("/generate", {"input_ids": prompt, "sampling_params": params})
        return self._judge(cell, problem, reply)

    def _judge(self, cell: Cell, problem: Problem, reply: dict[str, Any]) -> Reply:
        meta, tokens = reply["meta_info"], reply["output_ids"]
        numbers = meta["dynts"]
        if numbers["policy"] != cell.policy:
            raise RuntimeError(f"asked for policy {cell.policy}, served {numbers['policy']}")
        text = self.vocabulary.decode(tokens)
        return Reply(
            is_right=ledger.is_correct(problem, text),
            answer=text.rpartition(ledger.END_THINK)[2],
            output_len=len(tokens),
            is_truncated=meta["finish_reason"]["type"] == "length",
            is_loop=ends_in_loop(tokens),
            mean_kv=mean_held(
                numbers["question_len"], len(tokens), numbers["compacted_at"], numbers["dropped_then"]
            ),
            peak_kv=numbers["peak_window_len"],
        )


def main() -> None:
    """Run the cells and report them."""
    args = parse()
    tasks = [Task(n, held_out(args.split, args.num_problems, n)) for n in args.steps]
    print(HEAD, flush=True)
    with served(args.url, args.model, args.server_args) as client:
        run = Run(args, client)
        for cell in cells(args, tasks):
            result = run.find(cell)
            if result is None:
                result = run.measure(cell)
                keep(args.out, result, SETTINGS)
            print(format_row(result), flush=True)
    draw_accuracy(args.out.with_suffix(".png"), json.loads(args.out.read_text()))


def cells(args: argparse.Namespace, tasks: list[Task]) -> Iterator[Cell]:
    """Yield the cells in order, the full cache first: the others' lengths are compared with its."""
    for task in tasks:
        yield Cell(task, FULL, 1.0)
        for fraction in args.budget_fraction:
            for policy in args.policies:
                if policy != FULL:
                    yield Cell(task, policy, fraction)


def format_row(result: dict[str, Any]) -> str:
    """Return one table row; `HEAD` names the columns."""
    solved = result["tokens_per_solved"]
    return (
        f"{result['task']:<11}{result['policy']:<11}{result['budget_fraction']:>7.2f}{result['n']:>6}"
        f"{100 * result['correct'] / result['n']:>9.1f}  "
        f"[{100 * result['wilson_low']:5.1f}, {100 * result['wilson_high']:5.1f}] "
        f"{result['mean_kv_tokens']:>8.1f}{result['peak_kv_tokens']:>8}{result['length_inflation']:>8.2f}"
        f"{result['loop_rate']:>7.2f}{result['truncation_rate']:>7.2f}"
        f"{'-' if solved is None else format(solved, ',.0f'):>14}"
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("accuracy", __doc__)
    add = parser.add_argument
    add("--url", help="of a running server with DynTS that serves --model; default: start one")
    add("--model", type=Path, default=demo_model_path(), help="folder of the model, predictor in it")
    add("--seed", type=int, default=1, help="the model was trained with; recorded, nothing else")
    add("--server-args", default="", help="more arguments for a server of our own")
    add("--steps", nargs="+", type=int, default=[10, 14], help="ledger entries, a task for each")
    add("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    add("--budget-fraction", nargs="+", type=float, default=[0.3, 0.4, 0.5, 0.7], help=FRACTION_HELP)
    add("--num-problems", type=int, default=500)
    add("--split", choices=SPLITS, default="test")
    add("--temperature", type=float, default=0.0)
    add("--samples", type=int, default=1, help="per problem; with 5 also pass@5 and maj@5")
    add("--concurrency", type=int, default=64, help="requests in flight")
    add("--out", type=Path, default=RESULTS / "accuracy.json", help="a plot is put beside it")
    return parser.parse_args()


FRACTION_HELP = "budgets, as shares of the tokens of a reference trace; the question counts too"

if __name__ == "__main__":
    main()
