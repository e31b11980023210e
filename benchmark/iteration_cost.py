"""What an iteration of SGLang's scheduler costs the host: stock against DynTS.

The scheduler, the radix cache, the allocators and the plug-in's hooks are real and timed; the model's
forward is a stand-in and is not. Timed is the processor time of the scheduler's thread. Both sides take
turns of a few iterations, so that a machine that runs now faster and now slower does not decide. Each
number is the median of the turns; the ratio is that of each turn to the other side's beside it.
``hooks_ratio`` is what the hooks take where they run: host time with them over host time without.
``ratio`` is above it: tensor work that is a GPU's on a server evicts this core's caches, and there
is more of it with DynTS.
Launching kernels and graphs, which a GPU server's host also does, is not in it, so the ratios are higher
than there.

    python -m benchmark.iteration_cost
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmark.harness.charts import draw_iteration_cost
from benchmark.harness.provenance import RESULTS, parser_of, provenance, publish
from benchmark.harness.tables import ITERATION_COST, filled
from benchmark.simulation.job import DYNTS, SIDES, STOCK, Job, ServerSpec, Workload
from benchmark.simulation.launch import SideProcess
from sgl_dynts.config import DynTSConfig
from sgl_dynts.roofline import H200, QWEN_7B, decode_seconds
from sgl_dynts.window_flags import window_number

RUNNING = (64, 128, 256, 512, 1000)
BUDGETS = (1000, 2000, 5000)
QUEUES = (0, 1000, 4000)
USUAL_RUNNING, USUAL_BUDGET = 256, 5000
QUESTION_LEN = 50
SPARE = 1.05
"""The pool over what the requests hold together; a long free list costs a CPU more than a GPU."""
RESERVE_NOTHING = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "1"}
"""SGLang admits what fits now, so that exactly the wanted number runs."""
SETTINGS = ("running", "budget", "queue_len", "iterations")


@dataclass(frozen=True)
class Cell:
    """A number of running requests with windows of a budget, and requests that wait for a free row."""

    running: int
    budget: int
    queue_len: int

    @property
    def config(self) -> DynTSConfig:
        """The paper's proportions at this budget."""
        return DynTSConfig(self.budget, self.budget * 2 // 5, 0.4)

    @property
    def held_len(self) -> int:
        """KV tokens of one compacted request, on average."""
        return (self.config.retained_len(QUESTION_LEN) + self.budget) // 2


def main() -> None:
    """Run the cells and report them."""
    args = parse()
    with SideProcess(STOCK, **RESERVE_NOTHING) as stock, SideProcess(DYNTS, **RESERVE_NOTHING) as dynts:
        print(*filled(ITERATION_COST, []), sep="\n", flush=True)
        results = [run_cell(cell, args, {STOCK: stock, DYNTS: dynts}) for cell in cells(args)]
    draw_iteration_cost(args.out.with_suffix(".png"), results)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("iteration_cost", __doc__)
    add, tokens = parser.add_argument, window_number("budget")
    add("--running", nargs="*", type=int, default=RUNNING, help="running requests to sweep")
    add("--budget", nargs="*", type=tokens, default=BUDGETS, help="budgets to sweep, in KV tokens")
    add("--queue", nargs="*", type=int, default=QUEUES, help="waiting requests to sweep")
    add("--usual-running", type=int, default=USUAL_RUNNING, help="while another number is swept")
    add("--usual-budget", type=tokens, default=USUAL_BUDGET, help="while another number is swept")
    add("--all", action="store_true", help="every combination instead of one sweep after the other")
    add("--iterations", type=int, default=1500, help=f"timed iterations of each side, by {Job.turn_len}")
    add(
        "--out", type=Path, default=RESULTS / "iteration_cost.json", help="JSON list; its chart beside it"
    )
    args = parser.parse_args()
    for budget in (*args.budget, args.usual_budget):
        try:
            Cell(1, budget, 0).config  # noqa: B018  two fifths of it must be a local window
        except ValueError as error:
            parser.error(f"--budget or --usual-budget {budget}: {error}")
    return args


def cells(args: argparse.Namespace) -> list[Cell]:
    """Return the cells, each once."""
    if args.all:
        return [Cell(*each) for each in product(args.running, args.budget, args.queue)]
    swept = [Cell(running, args.usual_budget, 0) for running in args.running]
    swept += [Cell(args.usual_running, budget, 0) for budget in args.budget]
    swept += [Cell(args.usual_running, args.usual_budget, queue_len) for queue_len in args.queue]
    return list(dict.fromkeys(swept))


def run_cell(cell: Cell, args: argparse.Namespace, sides: dict[str, SideProcess]) -> dict[str, Any]:
    """Let the sides take turns in one cell; print and keep the result."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(SIDES)) as pool:
        jobs = {side: replace(make_job(cell, side, args.iterations), turns=folder) for side in SIDES}
        running = {side: pool.submit(sides[side].run, job) for side, job in jobs.items()}
        both = {side: each.result() for side, each in running.items()}
    result = summarize(cell, both, args)
    print(filled(ITERATION_COST, [result])[-1])
    publish(args.out, result, SETTINGS)
    return result


def make_job(cell: Cell, side: str, iterations: int) -> Job:
    """Build the job of one turn.

    The requests arrive over about one period, so that their compactions are spread as on a server
    that has run for a while. Timing begins when the last of them must have reached its budget.
    """
    period = cell.config.period
    step = decode_seconds(H200, QWEN_7B, cell.running, cell.running * cell.held_len, predictor=True)
    skip = cell.budget + 3 * period
    grown_len = QUESTION_LEN + skip + iterations
    held_len = cell.held_len if side == DYNTS else grown_len
    server = ServerSpec(
        pool_tokens=int(SPARE * cell.running * held_len) + 4 * cell.budget,
        windows=cell.config,
        max_running=cell.running,
        context_len=2 * grown_len,
    )
    workload = Workload(
        num_requests=cell.running + cell.queue_len,
        output_len=grown_len,
        question_len=QUESTION_LEN,
        spread_wave=cell.running,
        spread_seconds=0.6 * period * step,
    )
    return Job(server, workload, max_iterations=skip + iterations, skip_iterations=skip)


def summarize(cell: Cell, both: dict[str, dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Put both sides' turns into one object."""
    turns = {side: both[side]["turns_ms"] for side in SIDES}
    ratios = [ours / stock for stock, ours in zip(turns[STOCK], turns[DYNTS], strict=True)]
    lower, middle, upper = (round(each, 3) for each in quantiles(ratios, n=4))
    return {
        "running": cell.running,
        "budget": cell.budget,
        "queue_len": cell.queue_len,
        **{f"{side}_ms": round(median(turns[side]), 3) for side in SIDES},
        "hooks_ratio": both[DYNTS]["hooks_ratio"],
        "ratio": middle,
        "ratio_quartiles": [lower, upper],
        "compactions": both[DYNTS]["compactions"],
        "turns": len(ratios),
        "iterations": args.iterations,
        **provenance(),
    }


if __name__ == "__main__":
    main()
