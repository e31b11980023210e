"""What DynTS launches, by itself: a compaction round, sets per KV head, scoring; the copy speed beside.

    python -m benchmark.gpu.kernels --shape llama-8b

No server. A cell's batch is the number of due requests or of scored tokens, its length the window of a
due request, of the copy its bytes; the copy stands in the stock column, since it is the device's own.
Medians of --repeats runs: device time, launched while the device is busy, scoring from a CUDA graph.
"""

import argparse
from dataclasses import dataclass, replace
from itertools import product

import torch

from benchmark.gpu.report import Case, Cell, device_name, parser_with_out, report
from benchmark.gpu.timing import cache_flusher, captured, milliseconds, nothing, this_device
from benchmark.harness.shapes import CONFIGS, WINDOWS, gpu_named, roofline_shape
from benchmark.harness.tiny_models import random_predictor
from benchmark.simulation.job import DYNTS, STOCK
from sgl_dynts.compaction import CompactionPlan, apply_compaction
from sgl_dynts.config import DynTSConfig
from sgl_dynts.expected_attention import HORIZON, HeldLayer, LayerQueries, QueryStatistics, Rotation
from sgl_dynts.expected_layers import PairedQueries, expected_with_kernel
from sgl_dynts.head_sets import HeadBuffers, HeadMoves, move_heads, plan_moves
from sgl_dynts.roofline import (
    Gpu,
    compaction_seconds,
    head_choice_seconds,
    head_judgement_seconds,
    head_moves_seconds,
)
from sgl_dynts.score_pool import ScorePool
from sgl_dynts.scoring import write_scores
from sgl_dynts.window import Cut

COMPACTION, SCORING, COPY = "compaction", "scoring", "copy"
HEAD_JUDGEMENT = "judgement per head"
HEAD_CHOICE, HEAD_MOVES = "choice per head", "moves per head"
QUESTION_LEN = 32
REPEATS = 20


def main() -> None:
    """Measure and report."""
    args = parse()
    device = this_device()
    gpu = gpu_named(device_name()) if device.type == "cuda" else None
    budget = WINDOWS[args.shape].budget
    lengths = args.window or [budget // 2, budget, 4 * budget]
    cells = [copy_cell(args, device, gpu)]
    cells += [
        compaction_cell(args, device, gpu, due, window) for due, window in product(args.due, lengths)
    ]
    for due, window in product(args.head_due, lengths):
        cells += head_cells(args, device, gpu, due, window)
        if device.type == "cuda":  # elsewhere torch judges, layer by layer
            cells.append(judgement_cell(args, device, gpu, due, window))
    cells += [scoring_cell(args, device, gpu, batch) for batch in args.batch]
    report(args, cells, "gpu.kernels")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out("gpu.kernels", __doc__)
    add = parser.add_argument
    add("--shape", default="qwen-7b", choices=sorted(CONFIGS))
    add("--due", nargs="+", type=int, default=[1, 8, 32, 128, 512], help="requests compacted at once")
    add("--head-due", nargs="*", type=int, default=[1, 8, 32], help="the same, with a set per KV head")
    add("--window", nargs="+", type=int, help="KV tokens of each; default: half, one and four budgets")
    add("--batch", nargs="+", type=int, default=[1, 8, 32, 128, 256], help="tokens scored at once")
    add("--copy-mib", type=int, default=1024, help="size of the copy")
    add("--repeats", type=int, default=REPEATS)
    return parser.parse_args()


def compaction_round(windows: DynTSConfig, due: int, window: int) -> CompactionPlan:
    """Return the plan of a round in which so many windows of this length are due.

    The question is QUESTION_LEN tokens, and the local window and what is kept have the proportions of
    ``windows``.
    """
    local = window * windows.local_window // windows.budget
    candidates = window - local - QUESTION_LEN
    kept = max(0, int(windows.keep_ratio * (window - local)) - QUESTION_LEN)
    cut = Cut(QUESTION_LEN, candidates, kept, local)
    return CompactionPlan(tuple(range(1, due + 1)), (cut,) * due)


def compaction_milliseconds(
    windows: DynTSConfig, due: int, window: int, device: torch.device, repeats: int = REPEATS
) -> float:
    """Time one round: the rows of all due requests rewritten, their dropped slots gathered."""
    plan = compaction_round(windows, due, window)
    rows = torch.zeros(due + 1, window, dtype=torch.int32)
    rows[1:] = 1 + torch.randperm(due * window).view(due, window)
    original = rows.to(device)
    table = original.clone()
    scores = ScorePool(1 + due * window, device)
    scores.scores.uniform_()
    dropped = torch.zeros(due + 1, dtype=torch.int64, device=device)
    return milliseconds(
        lambda: apply_compaction(plan, table, scores, dropped),
        lambda: table.copy_(original),
        device,
        repeats,
    )


def compaction_cell(
    args: argparse.Namespace, device: torch.device, gpu: Gpu | None, due: int, window: int
) -> Cell:
    """Put the time of one round beside its prediction."""
    spent = compaction_milliseconds(WINDOWS[args.shape], due, window, device, args.repeats)
    predicted = gpu and {DYNTS: 1e3 * compaction_seconds(gpu, due * window)}
    return Case(COMPACTION, args.shape, due, window).cell("ms per round", {DYNTS: spent}, predicted)


@dataclass(frozen=True)
class HeadRound:
    """A round with a set per KV head; the due requests take turns in the slots of one.

    ``scores`` are [layers, heads, candidates] float32, ``slots`` [candidates] int64.
    """

    due: int
    scores: torch.Tensor
    slots: torch.Tensor
    num_kept: int
    buffers: HeadBuffers

    def choose(self) -> HeadMoves:
        """Plan for each request; all plans are the same."""
        fixed = torch.zeros_like(self.slots, dtype=torch.bool)
        moves = [plan_moves(self.scores, fixed, self.slots, self.num_kept) for _ in range(self.due)]
        return moves[0]

    def move(self, moves: HeadMoves) -> None:
        """Move for each request."""
        for _ in range(self.due):
            move_heads(moves, self.buffers)

    def moved_bytes(self, moves: HeadMoves) -> int:
        """Bytes that are read and written again; tokens that stay are not."""
        head_bytes = sum(tensor[0, 0].nbytes for tensor in self.buffers.layers[0])
        return 2 * self.due * head_bytes * int((moves.sources != moves.targets).sum())


def head_round(shape: str, due: int, window: int, device: torch.device) -> HeadRound:
    """Return a round of random scores over K and V of a shape; see :func:`compaction_round`."""
    config, (cut, *_) = CONFIGS[shape], compaction_round(WINDOWS[shape], due, window).cuts
    layers, heads = config["num_hidden_layers"], config["num_key_value_heads"]
    sizes = (window + 1, heads, config["head_dim"])
    dtype = getattr(torch, config["dtype"])
    kv = [[torch.zeros(sizes, dtype=dtype, device=device) for _ in "kv"] for _ in range(layers)]
    scores = torch.rand(layers, heads, cut.num_candidates, device=device)
    slots = 1 + torch.randperm(window, device=device)[: cut.num_candidates]
    return HeadRound(due, scores, slots, cut.num_kept, HeadBuffers.of(kv))


def head_cells(
    args: argparse.Namespace, device: torch.device, gpu: Gpu | None, due: int, window: int
) -> list[Cell]:
    """Put what a set per head adds to a round beside its prediction, and how much it moves."""
    work = head_round(args.shape, due, window, device)
    moves = work.choose()
    choice = milliseconds(work.choose, nothing, device, args.repeats)
    moving = milliseconds(lambda: work.move(moves), nothing, device, args.repeats)
    shape = roofline_shape(args.shape)
    foreseen = gpu and (
        {DYNTS: 1e3 * due * head_choice_seconds(gpu, shape, len(work.slots))},
        {DYNTS: 1e3 * due * head_moves_seconds(gpu, shape, work.num_kept)},
    )
    choice_foreseen, moves_foreseen = foreseen or (None, None)
    case = Case(HEAD_MOVES, args.shape, due, window)
    return [
        replace(case, bench=HEAD_CHOICE).cell("ms per round", {DYNTS: choice}, choice_foreseen),
        case.cell("ms per round", {DYNTS: moving}, moves_foreseen),
        case.cell("MB per round", {DYNTS: work.moved_bytes(moves) / 1e6}),
    ]


def judged_layers(shape: str, window: int, device: torch.device) -> tuple[list[HeldLayer], PairedQueries]:
    """Return a request's K and V in a pool of a shape, and random statistics of queries."""
    config = CONFIGS[shape]
    heads, dim = config["num_attention_heads"], config["head_dim"]
    sizes, dtype = (window + 1, config["num_key_value_heads"], dim), getattr(torch, config["dtype"])
    slots = 1 + torch.randperm(window, device=device)
    angles = torch.rand(window + max(HORIZON) + 1, dim // 2, device=device)
    rotation, layers, queries = Rotation(angles.cos(), angles.sin()), [], []
    for _ in range(config["num_hidden_layers"]):
        keys, values = (torch.randn(sizes, dtype=dtype, device=device) for _ in "kv")
        layers.append(HeldLayer(keys, values, dim**-0.5, slots))
        spread = torch.eye(dim, device=device).expand(heads, dim, dim)
        statistics = QueryStatistics(spread[:, 0], spread, spread[:, 0, : dim // 2])
        queries.append(LayerQueries(statistics, rotation))
    return layers, PairedQueries.of(queries)


def judgement_cell(
    args: argparse.Namespace, device: torch.device, gpu: Gpu | None, due: int, window: int
) -> Cell:
    """Put the time in which policy ``calibrated`` judges all due requests beside its prediction."""
    layers, queries = judged_layers(args.shape, window, device)

    def judge() -> None:
        for _ in range(due):
            expected_with_kernel(layers, queries, window - 1)

    spent = milliseconds(judge, nothing, device, args.repeats)
    shape = roofline_shape(args.shape)
    foreseen = gpu and {DYNTS: 1e3 * due * head_judgement_seconds(gpu, shape, window)}
    return Case(HEAD_JUDGEMENT, args.shape, due, window).cell("ms per round", {DYNTS: spent}, foreseen)


def scoring_milliseconds(shape: str, batch: int, device: torch.device, repeats: int = REPEATS) -> float:
    """Time what scores the tokens of one decode step and stores the scores, in a CUDA graph."""
    config = CONFIGS[shape]
    dtype = getattr(torch, config["dtype"])
    predictor = random_predictor(config["hidden_size"]).to(device, dtype).requires_grad_(False)
    hidden = torch.randn(batch, config["hidden_size"], device=device, dtype=dtype)
    slots = torch.arange(1, batch + 1, device=device)
    pool = ScorePool(batch + 1, device)
    run = captured(lambda: write_scores(predictor, hidden, slots, pool), device)
    return milliseconds(run, cache_flusher(device), device, repeats)


def predicted_scoring_milliseconds(gpu: Gpu, shape: str, batch: int) -> float:
    """Return what the roofline says of it: the predictor's weights, read once."""
    weights = roofline_shape(shape).predictor_bytes
    return 1e3 * gpu.seconds(weights, batch * weights)


def scoring_cell(args: argparse.Namespace, device: torch.device, gpu: Gpu | None, batch: int) -> Cell:
    """Put the time of one step's scoring beside its prediction."""
    spent = scoring_milliseconds(args.shape, batch, device, args.repeats)
    predicted = gpu and {DYNTS: predicted_scoring_milliseconds(gpu, args.shape, batch)}
    return Case(SCORING, args.shape, batch, 1).cell("ms per step", {DYNTS: spent}, predicted)


def copy_rate(num_bytes: int, device: torch.device, repeats: int = REPEATS) -> float:
    """Return bytes/s of a copy within the device; bytes read and written count, as in the data sheet."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = milliseconds(lambda: target.copy_(source), nothing, device, repeats)
    return 2 * num_bytes / spent * 1e3


def copy_cell(args: argparse.Namespace, device: torch.device, gpu: Gpu | None) -> Cell:
    """Put the copy's speed beside what the roofline assumes."""
    num_bytes = args.copy_mib << 20
    rate = copy_rate(num_bytes, device, args.repeats) / 1e9
    predicted = gpu and {STOCK: gpu.bandwidth * gpu.bandwidth_efficiency / 1e9}
    return Case(COPY, args.shape, 1, num_bytes).cell("GB/s", {STOCK: rate}, predicted)


if __name__ == "__main__":
    main()
