"""How many requests one GPU serves at once: stock SGLang against DynTS, the GPU simulated.

SGLang's own scheduler, radix cache and allocators run, and the plug-in's hooks; the model's forward is
replaced by a stand-in whose time the roofline tells. Every cell runs both sides in this one command.

    python -m benchmark.capacity --shape qwen-7b --output-len 16384 --load unlimited 0.5
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from benchmark.harness.charts import draw_capacity
from benchmark.harness.provenance import RESULTS, parser_of, provenance, publish
from benchmark.harness.tables import table
from benchmark.harness.windows import windows_of
from benchmark.simulation.job import DYNTS, SIDES, STOCK, Job, ServerSpec, Workload, steady
from benchmark.simulation.launch import SideProcess
from sgl_dynts.config import PAPER_CONFIGS, DynTSConfig
from sgl_dynts.roofline import GPUS, SHAPES, mean_compacted_len, mean_full_len
from sgl_dynts.window_flags import add_window_flags

UNLIMITED = "unlimited"
SETTINGS = (
    *("shape", "output_len", "load", "question_len", "shared_prefix_len", "answer_len", "end"),
    *(
        "clients",
        "lives",
        "n_requests",
        "pool_tokens",
        "windows",
        "max_running",
        "overlap",
        "flags",
        "seed",
    ),
)
CLIENTS = 1.25
"""Clients of an unlimited load: so many times what the pool holds of compacted requests."""
STEADY_LIVES = 1.5
"""An unlimited load is counted for so many lifetimes of a request."""
LIVES = 6
"""A load with a rate lasts so many times as long as one request at 30 ms per token."""
SECONDS_PER_TOKEN = 0.03


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    job: Job
    load: str
    flags: dict[str, tuple[str, ...]]
    """More server arguments, by side."""
    lives: float
    """How long an unlimited load is counted."""

    def job_of(self, side: str) -> Job:
        """Return one side's job: its own flags, and a first wave that fills its own pool."""
        server, load = replace(self.job.server, flags=self.flags[side]), self.job.workload
        if load.clients is not None:
            load = steady(load, self.fitting(side), self.lives)
        return replace(self.job, server=server, workload=load)

    def fitting(self, side: str) -> int:
        """Requests that a side's pool holds, by their mean length."""
        server, load = self.job.server, self.job.workload
        question_len, output_len = load.question_len, load.output_len
        if side == DYNTS:
            pool = server.pool_tokens or 0
            return poolful(server.windows, pool, question_len, output_len, server.max_running)
        return max(1, int((server.pool_tokens or 0) / mean_full_len(question_len, output_len)))


def main() -> None:
    """Run the cells and report them."""
    args = parse()
    for cell in cells(args):
        stock, dynts = run_both(cell, args.jobs)
        result = summarize(cell, stock, dynts)
        print_table(result, stock, dynts)
        publish(args.out, result, SETTINGS)
        draw_capacity(args.out.parent / f"{name_of(result)}.png", result, stock, dynts)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("capacity", __doc__)
    add = parser.add_argument
    add("--shape", nargs="+", default=["qwen-7b"], choices=sorted(SHAPES), help="model shapes")
    add("--gpu", default="h200", choices=sorted(GPUS))
    add("--output-len", nargs="+", type=int, default=[16384], help="tokens each request generates")
    add("--load", nargs="+", default=[UNLIMITED], help=LOAD_HELP)
    add("--question-len", type=int, default=200, help="prompt tokens, shared prefix included")
    add("--shared-prefix", type=int, default=0, help="prompt tokens that all requests share")
    add("--answer-len", type=int, default=0, help="tokens after </think>; 0: thinking to the end")
    add("--end", choices=("length", "eos"), default="length", help=END_HELP)
    add("--clients", type=int, help=f"of the unlimited load; default: {CLIENTS} poolfuls, compacted")
    add(
        "--lives", type=float, default=STEADY_LIVES, help="of requests, that an unlimited load is counted"
    )
    add("--num-requests", type=int, help=f"of a load with a rate; default: {LIVES} lifetimes of arrivals")
    add("--pool-tokens", type=int, help="KV tokens of the pool; default: what fits beside the weights")
    add_window_flags(parser, "the paper's for the shape")
    add("--max-running", type=int, default=1200, help="--max-running-requests of both servers")
    add("--stock-flags", default="", help="more server arguments of the stock side, in one string")
    add("--dynts-flags", default="", help="more server arguments of the DynTS side, in one string")
    add("--no-overlap", action="store_true", help="SGLang's loop without overlap")
    add("--seed", type=int, default=0)
    add("--jobs", type=int, choices=(1, 2), default=1, help="2: both sides at once, on two cores")
    add("--max-minutes", type=float, default=60, help="real time after which a side is given up")
    add("--out", type=Path, default=RESULTS / "capacity.json", help="JSON list; charts go beside it")
    return parser.parse_args()


LOAD_HELP = (
    "'unlimited': more clients than fit, each sends its next request when one finishes; or requests/s"
)
END_HELP = (
    "length: requests ask for exactly their length and ignore the end-of-sequence token; eos: they "
    "ask for twice the longest and end by that token, for which SGLang reserves less"
)


def cells(args: argparse.Namespace) -> list[Cell]:
    """Return all combinations of shapes, lengths and loads."""
    combinations = [
        (shape, length, load) for shape in args.shape for length in args.output_len for load in args.load
    ]
    flags = {STOCK: tuple(args.stock_flags.split()), DYNTS: tuple(args.dynts_flags.split())}
    return [Cell(make_job(args, *each), each[2], flags, args.lives) for each in combinations]


def make_job(args: argparse.Namespace, shape: str, output_len: int, load: str) -> Job:
    """Build the job of one cell; the same for both sides but for their own flags."""
    windows = windows_of(args, PAPER_CONFIGS[shape])
    pool = args.pool_tokens or SHAPES[shape].pool_tokens(GPUS[args.gpu])
    room = 2 if args.end == "eos" else 1
    server = ServerSpec(
        shape=shape,
        gpu=args.gpu,
        pool_tokens=pool,
        windows=windows,
        max_running=args.max_running,
        context_len=args.question_len + room * output_len + 64,
        overlap=not args.no_overlap,
    )
    fitting = poolful(windows, pool, args.question_len, output_len, args.max_running)
    rate = None if load == UNLIMITED else float(load)
    workload = Workload(
        num_requests=0 if rate is None else args.num_requests or num_arrivals(rate, output_len),
        output_len=output_len,
        question_len=args.question_len,
        shared_prefix_len=args.shared_prefix,
        rate=rate,
        clients=args.clients or ceil(CLIENTS * fitting) if rate is None else None,
        answer_len=args.answer_len,
        max_new_tokens=room * output_len if args.end == "eos" else None,
        seed=args.seed,
    )
    return Job(server, workload, max_wall_seconds=60 * args.max_minutes)


def poolful(windows: DynTSConfig, pool: int, question_len: int, output_len: int, most: int) -> int:
    """Compacted requests that a pool holds, by their mean length."""
    retained = windows.retained_len(question_len)
    budget = windows.budget_for(question_len)
    return min(most, int(pool / mean_compacted_len(question_len, output_len, budget, retained)))


def num_arrivals(rate: float, output_len: int) -> int:
    """Requests enough for a steady stretch."""
    return max(20, int(LIVES * rate * output_len * SECONDS_PER_TOKEN))


def run_both(cell: Cell, jobs: int) -> list[dict[str, Any]]:
    """Run stock and DynTS, each in a process of its own."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda side: run_one(cell, side), SIDES))


def run_one(cell: Cell, side: str) -> dict[str, Any]:
    """Run one side."""
    with SideProcess(side) as process:
        return process.run(cell.job_of(side))


def summarize(cell: Cell, stock: dict[str, Any], dynts: dict[str, Any]) -> dict[str, Any]:
    """Put both sides' measures into one object."""
    server, workload = cell.job.server, cell.job.workload
    both = {"stock": stock, "dynts": dynts}
    return {
        "shape": server.shape,
        "output_len": workload.output_len,
        "load": cell.load,
        **{f"{side}_tokens_per_s": measures["tokens_per_s"] for side, measures in both.items()},
        **{f"{side}_retractions": measures["retractions"] for side, measures in both.items()},
        **{f"{side}_running": measures["running"] for side, measures in both.items()},
        "host_overhead_ratio": dynts["hooks_ratio"],
        **{name: {side: measures[name] for side, measures in both.items()} for name in MEASURES},
        "clients": workload.clients,
        "lives": cell.lives,
        "n_requests": {side: cell.job_of(side).workload.num_requests for side in SIDES},
        "question_len": workload.question_len,
        "shared_prefix_len": workload.shared_prefix_len,
        "answer_len": workload.answer_len,
        "end": "length" if workload.max_new_tokens is None else "eos",
        "pool_tokens": stock["pool_tokens"],
        "windows": list(server.windows.given().values()),
        "max_running": server.max_running,
        "overlap": server.overlap,
        "flags": {side: list(flags) for side, flags in cell.flags.items()},
        "seed": workload.seed,
        **provenance(),
    }


MEASURES = (
    *("ttft", "latency", "prefix_hit_rate", "held_tokens", "peak_running", "compactions", "makespan_s"),
    *("window_s", "prefilled_tokens", "generated_tokens", "output_tokens", "finished"),
    *("wrong_lengths", "lost_slots", "iterations", "wall_s", "host_ms"),
)


ROWS = (
    ("output tokens/s", "tokens_per_s"),
    ("running requests", "running"),
    ("held KV tokens", "held_tokens"),
    ("retractions", "retractions"),
    ("compactions", "compactions"),
    ("prefix hit rate", "prefix_hit_rate"),
    ("prefilled tokens", "prefilled_tokens"),
    ("all done after, s", "makespan_s"),
)


def print_table(result: dict[str, Any], stock: dict[str, Any], dynts: dict[str, Any]) -> None:
    """Print one cell for people."""
    print(
        f"\n{result['shape']}, {result['output_len']} output tokens, load {result['load']}, "
        f"pool of {result['pool_tokens']} tokens"
    )
    rows = [(title, stock[name], dynts[name]) for title, name in ROWS]
    for title, measure in (("first token after", "ttft"), ("done after", "latency")):
        for name in ("mean", "p50", "p99"):
            rows.append((f"{title}, s, {name}", stock[measure].get(name), dynts[measure].get(name)))
    ratios = [f"{ours / theirs:.2f}" if theirs and ours else "" for _, theirs, ours in rows]
    lines = ((*row, ratio) for row, ratio in zip(rows, ratios, strict=True))
    print(*table(("", "stock", "DynTS", "ratio"), lines), sep="\n")
    print(f"host time per iteration, with the hooks / without: {result['host_overhead_ratio']}")


def name_of(result: dict[str, Any]) -> str:
    """Return the name of a cell's chart."""
    shared = f"-shared{result['shared_prefix_len']}" if result["shared_prefix_len"] else ""
    load = result["load"].replace(".", "_")
    return f"capacity-{result['shape']}-{result['output_len']}-{load}{shared}-{result['end']}"


if __name__ == "__main__":
    main()
