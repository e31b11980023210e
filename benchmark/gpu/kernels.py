"""What DynTS launches, by itself: a compaction round and the scoring of a batch; the copy speed beside.

    python -m benchmark.gpu.kernels --shape llama-8b

No server. A cell's batch is the number of due requests or of scored tokens, its length the window of a
due request, of the copy its bytes; the copy stands in the stock column, since it is the device's own.
Medians of --repeats runs; on a GPU by its own events.
"""

import argparse
import time
from collections.abc import Callable
from itertools import product
from statistics import median

import torch

from benchmark.gpu.models import random_predictor
from benchmark.gpu.report import Case, Cell, device_name, parser_with_out, report
from benchmark.gpu.shapes import CONFIGS, WINDOWS, gpu_named, roofline_shape
from sgl_dynts.compaction import CompactionPlan, apply_compaction
from sgl_dynts.roofline import Gpu, compaction_seconds
from sgl_dynts.score_pool import ScorePool
from sgl_dynts.window import Cut
from sglang_dynts.simulation.job import DYNTS, STOCK, Windows

COMPACTION, SCORING, COPY = "compaction", "scoring", "copy"
QUESTION_LEN = 32
WARM_UPS = 3


def main() -> None:
    """Measure and report."""
    args = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = gpu_named(device_name()) if device.type == "cuda" else None
    cells = [copy_cell(args, device, gpu)]
    cells += [
        compaction_cell(args, device, gpu, due, window)
        for due, window in product(args.due, args.window or [WINDOWS[args.shape].budget])
    ]
    cells += [scoring_cell(args, device, gpu, batch) for batch in args.batch]
    report(args.out, cells, "gpu.kernels")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out("gpu.kernels", __doc__)
    add = parser.add_argument
    add("--shape", default="qwen-7b", choices=sorted(CONFIGS))
    add("--due", nargs="+", type=int, default=[1, 8, 32, 128], help="requests compacted at once")
    add("--window", nargs="+", type=int, help="KV tokens of each; default: the shape's budget")
    add("--batch", nargs="+", type=int, default=[1, 32, 256], help="tokens scored at once")
    add("--copy-mib", type=int, default=1024, help="size of the copy")
    add("--repeats", type=int, default=20)
    return parser.parse_args()


def milliseconds(
    run: Callable[[], object], prepare: Callable[[], object], device: torch.device, repeats: int
) -> float:
    """Return the median time of ``run``; ``prepare`` runs before each and is not timed."""
    times = []
    for index in range(WARM_UPS + repeats):
        prepare()
        spent = _once_on_gpu(run) if device.type == "cuda" else _once(run)
        if index >= WARM_UPS:
            times.append(spent)
    return median(times)


def _once(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _once_on_gpu(run: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def compaction_round(windows: Windows, due: int, window: int) -> CompactionPlan:
    """Return the plan of a round in which so many windows of this length are due.

    The question is QUESTION_LEN tokens, and the local window and what is kept have the proportions of
    ``windows``.
    """
    local = window * windows.local_window // windows.budget
    candidates = window - local - QUESTION_LEN
    kept = max(0, int(windows.keep_ratio * (window - local)) - QUESTION_LEN)
    cut = Cut(QUESTION_LEN, candidates, kept, local)
    return CompactionPlan(tuple(range(1, due + 1)), (cut,) * due)


def compaction_cell(
    args: argparse.Namespace, device: torch.device, gpu: Gpu | None, due: int, window: int
) -> Cell:
    """Time one round: the rows of all due requests rewritten, their dropped slots gathered."""
    plan = compaction_round(WINDOWS[args.shape], due, window)
    rows = torch.zeros(due + 1, window, dtype=torch.int32)
    rows[1:] = 1 + torch.randperm(due * window).view(due, window)
    original = rows.to(device)
    table = original.clone()
    scores = ScorePool(1 + due * window, device)
    scores.scores.uniform_()
    dropped = torch.zeros(due + 1, dtype=torch.int64, device=device)
    spent = milliseconds(
        lambda: apply_compaction(plan, table, scores, dropped),
        lambda: table.copy_(original),
        device,
        args.repeats,
    )
    predicted = gpu and {DYNTS: 1e3 * compaction_seconds(gpu, due * window)}
    return Case(COMPACTION, args.shape, due, window).cell("ms per round", {DYNTS: spent}, predicted)


def scoring_cell(args: argparse.Namespace, device: torch.device, gpu: Gpu | None, batch: int) -> Cell:
    """Time the predictor on the hidden states of one decode step."""
    config = CONFIGS[args.shape]
    dtype = getattr(torch, config["dtype"])
    predictor = random_predictor(config["hidden_size"]).to(device, dtype).requires_grad_(False)
    hidden = torch.randn(batch, config["hidden_size"], device=device, dtype=dtype)
    spent = milliseconds(lambda: predictor(hidden), lambda: None, device, args.repeats)
    weights = roofline_shape(args.shape).predictor_bytes
    predicted = gpu and {DYNTS: 1e3 * gpu.seconds(weights, batch * weights)}
    return Case(SCORING, args.shape, batch, 1).cell("ms per step", {DYNTS: spent}, predicted)


def copy_cell(args: argparse.Namespace, device: torch.device, gpu: Gpu | None) -> Cell:
    """Time a copy within the device; bytes read and written count, as in the data sheet."""
    source = torch.zeros(args.copy_mib << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = milliseconds(lambda: target.copy_(source), lambda: None, device, args.repeats)
    rate = 2 * source.numel() / spent / 1e6
    predicted = gpu and {STOCK: gpu.bandwidth * gpu.bandwidth_efficiency / 1e9}
    return Case(COPY, args.shape, 1, source.numel()).cell("GB/s", {STOCK: rate}, predicted)


if __name__ == "__main__":
    main()
