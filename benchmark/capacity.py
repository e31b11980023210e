"""How many requests one GPU serves at once: stock SGLang against DynTS, the GPU simulated.

SGLang's own scheduler, radix cache and allocators run, and the plug-in's hooks; the model's forward is
replaced by a stand-in whose time the roofline tells. Every cell runs both sides in this one command.

    python -m benchmark.capacity --shape qwen-7b --output-len 16384 --load unlimited 0.5

Models with sliding layers, latents or recurrent states get SGLang's pools for them, and each side the
division of its memory that its own requests need. With `--stands-for 8` each simulated request stands for
eight alike: an eighth of the pools is simulated, and told is the whole.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from benchmark.harness.charts import draw_capacity
from benchmark.harness.families import FAMILIES
from benchmark.harness.provenance import RESULTS, parser_of, provenance, publish
from benchmark.harness.shapes import STATES_ALONE, WINDOWS, roofline_shape
from benchmark.harness.tables import table
from benchmark.harness.windows import windows_of
from benchmark.predict import Outlook
from benchmark.simulation.job import DYNTS, SIDES, STOCK, Job, ServerSpec, Workload, steady
from benchmark.simulation.launch import SideProcess
from sgl_dynts.config import PAPER_CONFIG
from sgl_dynts.roofline import GPUS, SHAPES, Pools
from sgl_dynts.window_flags import add_window_flags

UNLIMITED = "unlimited"
SETTINGS = (
    *("shape", "output_len", "load", "question_len", "shared_prefix_len", "answer_len", "end"),
    *(
        "clients",
        "lives",
        "n_requests",
        "pool_tokens",
        "stands_for",
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
    outlook: Outlook
    """What the roofline says of these requests."""
    pools: dict[str, Pools]
    """Of the simulated requests, by side."""

    def job_of(self, side: str) -> Job:
        """Return one side's job: its own pools and flags, and a first wave that fills its pools."""
        pools, load = self.pools[side], self.job.workload
        server = replace(
            self.job.server,
            pool_tokens=pools.tokens,
            num_states=pools.states,
            flags=self.flags[side],
        )
        if load.clients is not None:
            load = steady(load, self.fitting(side), self.lives)
        return replace(self.job, server=server, workload=load)

    def fitting(self, side: str) -> int:
        """Simulated requests that a side's pools hold, by their mean length."""
        held_len = self.outlook.mean_len(side)
        fitting = self.outlook.shape.requests_in(self.pools[side], held_len)
        return min(self.job.server.max_running, fitting)


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
    shapes = sorted(SHAPES | FAMILIES)
    add("--shape", nargs="+", default=["qwen-7b"], choices=shapes, help="model shapes")
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
    add("--counted-only", action="store_true", help=COUNTED_ONLY_HELP)
    add("--stands-for", type=int, default=1, help="requests that each simulated one stands for")
    add("--pool-tokens", type=int, help="KV tokens of the pool; default: what fits beside the weights")
    add("--sliding-share", type=float, default=SLIDING_SHARE, help=SLIDING_SHARE_HELP)
    add("--state-ratio", type=float, nargs=2, metavar=SIDES, help=STATE_RATIO_HELP)
    add("--no-prefix-cache", action="store_true", help="both servers with --disable-radix-cache")
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


SLIDING_SHARE = 0.1
SLIDING_SHARE_HELP = (
    "--swa-full-tokens-ratio of both servers, where a shape has sliding layers; default: "
    f"{SLIDING_SHARE:g}, SGLang's own is 0.8"
)
STATE_RATIO_HELP = (
    "--mamba-full-memory-ratio of each server, where a shape has recurrent layers; default: that with "
    "which states and tokens run out together, SGLang's own is 0.9"
)
COUNTED_ONLY_HELP = "end when the stretch is over that rates are taken from, the last requests unanswered"
LOAD_HELP = (
    "'unlimited': more clients than fit, each sends its next request when one finishes; or requests/s"
)
END_HELP = (
    "length: requests ask for exactly their length and ignore the end-of-sequence token; eos: they "
    "ask for twice the longest and end by that token, for which SGLang reserves less"
)


def cells(args: argparse.Namespace) -> list[Cell]:
    """Return all combinations of shapes, lengths and loads."""
    return [
        make_cell(args, shape, output_len, load)
        for shape in args.shape
        for output_len in args.output_len
        for load in args.load
    ]


def make_cell(args: argparse.Namespace, shape: str, output_len: int, load: str) -> Cell:
    """Build one cell: what both sides share, and each side's pools and flags."""
    outlook = outlook_of(args, shape, output_len)
    pools = {side: pools_of(args, outlook, side) for side in SIDES}
    cache = ("--disable-radix-cache",) if args.no_prefix_cache else ()
    flags = {
        STOCK: (*cache, *args.stock_flags.split()),
        DYNTS: (*cache, *args.dynts_flags.split()),
    }
    job = Job(server_of(args, outlook), workload_of(args, output_len, load))
    job = replace(job, max_wall_seconds=60 * args.max_minutes, ends_with_window=args.counted_only)
    cell = Cell(job, load, flags, args.lives, outlook, pools)
    if load != UNLIMITED:
        return cell
    clients = args.clients or ceil(CLIENTS * cell.fitting(DYNTS))
    return replace(cell, job=replace(job, workload=replace(job.workload, clients=clients)))


def outlook_of(args: argparse.Namespace, name: str, output_len: int) -> Outlook:
    """Return the roofline's view of a cell's requests."""
    shape = roofline_shape(name)
    if shape.recurrent_layers and args.no_prefix_cache:
        shape = replace(shape, num_states=STATES_ALONE)
    windows = windows_of(args, WINDOWS.get(name, PAPER_CONFIG))
    return Outlook(GPUS[args.gpu], shape, windows, args.question_len, output_len)


def pools_of(args: argparse.Namespace, outlook: Outlook, side: str) -> Pools:
    """Divide the memory of a side, and take of it what the simulated requests have."""
    shape = outlook.shape
    share = args.sliding_share if shape.sliding_layers else 0
    even = shape.even_state_ratio(outlook.mean_len(side))
    ratio = args.state_ratio[SIDES.index(side)] if args.state_ratio and even else even
    pools = shape.pools(outlook.gpu, share, ratio)
    return pools.around((args.pool_tokens or pools.tokens) // args.stands_for)


def server_of(args: argparse.Namespace, outlook: Outlook) -> ServerSpec:
    """Describe the server of both sides, all but pools and flags."""
    room = 2 if args.end == "eos" else 1
    return ServerSpec(
        shape=outlook.shape.name,
        gpu=args.gpu,
        windows=outlook.config,
        max_running=ceil(args.max_running / args.stands_for),
        context_len=args.question_len + room * outlook.output_len + 64,
        chunked_prefill=ceil(ServerSpec.chunked_prefill / args.stands_for),
        overlap=not args.no_overlap,
        sliding_share=args.sliding_share,
        stands_for=args.stands_for,
    )


def workload_of(args: argparse.Namespace, output_len: int, load: str) -> Workload:
    """Describe the requests of both sides, all but how many clients an unlimited load has."""
    rate = None if load == UNLIMITED else float(load)
    return Workload(
        num_requests=0 if rate is None else args.num_requests or num_arrivals(rate, output_len),
        output_len=output_len,
        question_len=args.question_len,
        shared_prefix_len=args.shared_prefix,
        rate=rate,
        answer_len=args.answer_len,
        max_new_tokens=2 * output_len if args.end == "eos" else None,
        seed=args.seed,
    )


def num_arrivals(rate: float, output_len: int) -> int:
    """Requests enough for a steady stretch."""
    return max(20, int(LIVES * rate * output_len * SECONDS_PER_TOKEN))


def run_both(cell: Cell, jobs: int) -> list[dict[str, Any]]:
    """Run stock and DynTS, each in a process of its own."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda side: run_one(cell, side), SIDES))


def run_one(cell: Cell, side: str) -> dict[str, Any]:
    """Run one side; its measures are those of all requests that the simulated ones stand for."""
    with SideProcess(side) as process:
        return of_all(process.run(cell.job_of(side)), cell.job.server.stands_for)


def of_all(measures: dict[str, Any], each: int) -> dict[str, Any]:
    """Return the measures of so many servers alike that work side by side as one."""
    series = dict(measures["series"])
    for column in ("running", "held_tokens", "queue_len"):
        series[column] = [each * value for value in series[column]]
    counts = {name: each * measures[name] for name in COUNTS}
    return measures | counts | {"series": series}


def summarize(cell: Cell, stock: dict[str, Any], dynts: dict[str, Any]) -> dict[str, Any]:
    """Put both sides' measures into one object."""
    server, workload = cell.job.server, cell.job.workload
    both = {"stock": stock, "dynts": dynts}
    names = MEASURES if cell.job.ends_with_window else MEASURES + LOST
    return {
        "shape": server.shape,
        "output_len": workload.output_len,
        "load": cell.load,
        **{f"{side}_tokens_per_s": measures["tokens_per_s"] for side, measures in both.items()},
        **{f"{side}_retractions": measures["retractions"] for side, measures in both.items()},
        **{f"{side}_running": measures["running"] for side, measures in both.items()},
        "host_overhead_ratio": dynts["hooks_ratio"],
        **{name: {side: measures[name] for side, measures in both.items()} for name in names},
        "gpus": cell.outlook.shape.tp_size,
        "clients": workload.clients,
        "lives": cell.lives,
        "n_requests": {side: cell.job_of(side).workload.num_requests for side in SIDES},
        "question_len": workload.question_len,
        "shared_prefix_len": workload.shared_prefix_len,
        "answer_len": workload.answer_len,
        "end": "length" if workload.max_new_tokens is None else "eos",
        "pool_tokens": stock["pool_tokens"],
        "pools": {side: asdict(pools) for side, pools in cell.pools.items()},
        "states": cell.outlook.shape.num_states if cell.outlook.shape.recurrent_layers else 0,
        "stands_for": server.stands_for,
        "windows": list(server.windows.given().values()),
        "max_running": server.max_running,
        "overlap": server.overlap,
        "flags": {side: list(flags) for side, flags in cell.flags.items()},
        "seed": workload.seed,
        **provenance(),
    }


LOST = ("lost_slots", "lost_sliding_slots", "lost_states")
"""What should be 0 when every request has been answered."""
COUNTS = (
    *("tokens_per_s", "running", "held_tokens", "peak_running", "retractions", "compactions"),
    *("prefilled_tokens", "generated_tokens", "output_tokens", "finished", "wrong_lengths"),
    *("pool_tokens", *LOST),
)
"""What there is so many times more of as a simulated request stands for requests."""
MEASURES = (
    *("ttft", "latency", "prefix_hit_rate", "held_tokens", "peak_running", "compactions", "makespan_s"),
    *("window_s", "prefilled_tokens", "generated_tokens", "output_tokens", "finished"),
    *("wrong_lengths", "iterations", "wall_s", "host_ms"),
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
    pools = ", ".join(f"{side} {told(pools)}" for side, pools in result["pools"].items())
    each = f", each standing for {result['stands_for']} requests" if result["stands_for"] > 1 else ""
    print(
        f"\n{result['shape']}, {result['output_len']} output tokens, load {result['load']}, "
        f"pools of the simulated requests{each}: {pools}"
    )
    rows = [(title, stock[name], dynts[name]) for title, name in ROWS]
    for title, measure in (("first token after", "ttft"), ("done after", "latency")):
        for name in ("mean", "p50", "p99"):
            rows.append((f"{title}, s, {name}", stock[measure].get(name), dynts[measure].get(name)))
    ratios = [f"{ours / theirs:.2f}" if theirs and ours else "" for _, theirs, ours in rows]
    lines = ((*row, ratio) for row, ratio in zip(rows, ratios, strict=True))
    print(*table(("", "stock", "DynTS", "ratio"), lines), sep="\n")
    print(f"host time per iteration, with the hooks / without: {result['host_overhead_ratio']}")


def told(pools: dict[str, int]) -> str:
    """Say what pools hold, those that a shape does not have left out."""
    return " + ".join(f"{size:,} {name.replace('_', ' ')}" for name, size in pools.items() if size)


def name_of(result: dict[str, Any]) -> str:
    """Return the name of a cell's chart."""
    shared = f"-shared{result['shared_prefix_len']}" if result["shared_prefix_len"] else ""
    load = result["load"].replace(".", "_")
    states = "-no-prefix-cache" if result["states"] == STATES_ALONE else ""
    return f"capacity-{result['shape']}-{result['output_len']}-{load}{shared}-{result['end']}{states}"


if __name__ == "__main__":
    main()
