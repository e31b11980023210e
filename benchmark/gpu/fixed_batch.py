"""A batch of requests that starts and ends together: time per token, tokens per second, peak of the KV.

python -m benchmark.gpu.fixed_batch --shape qwen-7b --batch 1 8 32 --output-len 4096 16384
"""

import argparse
from itertools import product

from benchmark.gpu.plots import draw_kv, draw_throughput
from benchmark.gpu.report import (
    PEAK,
    THROUGHPUT,
    Case,
    Cell,
    device_name,
    outlook_of,
    parser_with_out,
    report,
)
from benchmark.gpu.servers import Setup, Watch, add_server_arguments, run_sides, setup_of
from benchmark.gpu.serving import RandomLoad, Served, run_load
from sglang_dynts.simulation.job import DYNTS, SIDES, STOCK

BENCH = "fixed_batch"


def main() -> None:
    """Run both sides, report, draw."""
    args = parse()
    setup = setup_of(args)
    loads = loads_of(args)
    sides = run_sides(setup, lambda server: [run_load(server, load) for load in loads])
    measured = list(zip(loads, sides[STOCK], sides[DYNTS], strict=True))
    cells = [
        cell
        for load, stock, dynts in measured
        for cell in cells_of(setup, load, {STOCK: stock, DYNTS: dynts})
    ]
    report(args.out, cells, f"gpu.{BENCH}")
    for load, stock, dynts in measured:
        name = f"gpu-{BENCH}-{setup.shape}-{load.num_prompts}x{load.output_len}.png"
        title = f"{setup.shape} on {device_name()}: {load.num_prompts} x {load.output_len:,} tokens"
        draw_kv(args.out.parent / name, {STOCK: stock[1], DYNTS: dynts[1]}, title)
    throughput = [cell for cell in cells if cell.unit == THROUGHPUT]
    draw_throughput(args.out.parent / f"gpu-{BENCH}-{setup.shape}.png", throughput, device_name())


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out(f"gpu.{BENCH}", __doc__)
    add_server_arguments(parser)
    add = parser.add_argument
    add("--batch", nargs="+", type=int, default=[1, 8, 32], help="requests that run at once")
    add("--output-len", nargs="+", type=int, default=[4096, 16384], help="tokens each generates")
    add("--question-len", type=int, default=200, help="prompt tokens")
    return parser.parse_args()


def loads_of(args: argparse.Namespace) -> list[RandomLoad]:
    """Return a load for each batch and length."""
    return [
        RandomLoad(args.question_len, output_len, batch, max_concurrency=batch)
        for batch, output_len in product(args.batch, args.output_len)
    ]


def cells_of(setup: Setup, load: RandomLoad, sides: dict[str, tuple[Served, Watch]]) -> list[Cell]:
    """Put one load's measures beside their predictions."""
    outlook = outlook_of(setup, load.input_len, load.output_len)
    batch = load.num_prompts
    case = Case(BENCH, setup.shape, batch, load.output_len)
    served = {side: sides[side][0] for side in SIDES}
    return [
        case.cell(
            "ms per output token",
            {side: served[side].tpot_ms for side in SIDES},
            outlook and {side: 1e3 * outlook.step_seconds(side, batch) for side in SIDES},
        ),
        case.cell(
            THROUGHPUT,
            {side: served[side].tokens_per_s for side in SIDES},
            outlook and {side: outlook.tokens_per_s(side, batch) for side in SIDES},
        ),
        case.cell(
            PEAK,
            {side: sides[side][1].peak_tokens for side in SIDES},
            outlook and {side: batch * outlook.peak_len(side) for side in SIDES},
        ),
    ]


if __name__ == "__main__":
    main()
