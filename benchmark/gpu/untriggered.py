"""Outputs shorter than the budget, so that nothing is compacted: what DynTS costs, and the same tokens.

    python -m benchmark.gpu.untriggered --shape qwen-7b --batch 1 32

Greedy requests are sent one after the other to each server; their token ids must be the same. The command
fails if they are not.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.gpu.models import FIRST_WORD
from benchmark.gpu.report import Case, Cell, outlook_of, parser_with_out, report
from benchmark.gpu.servers import RunningServer, Setup, add_server_arguments, run_sides, setup_of
from benchmark.gpu.serving import RandomLoad, Served, run_load
from benchmark.gpu.shapes import CONFIGS
from sglang_dynts.simulation.job import DYNTS, SIDES, STOCK

BENCH = "untriggered"
IDENTICAL = "greedy requests with stock's tokens"


@dataclass(frozen=True)
class Measured:
    """One side: greedy tokens of each request, and what the load generator measured of each batch."""

    tokens: list[list[int]]
    served: list[Served]


def main() -> None:
    """Run both sides, report, fail if a token differs."""
    args = parse()
    setup = setup_of(args)
    check_length(setup, args.question_len, args.output_len)
    loads = [RandomLoad(args.question_len, args.output_len, batch, batch) for batch in args.batch]
    prompts = prompts_of(setup.shape, args.requests, args.question_len)

    def measure(server: RunningServer) -> Measured:
        tokens = [server.generate(prompt, args.output_len) for prompt in prompts]
        return Measured(tokens, [run_load(server, load)[0] for load in loads])

    sides = run_sides(setup, measure)
    same = num_identical(sides[STOCK].tokens, sides[DYNTS].tokens)
    case = Case(BENCH, setup.shape, 1, args.output_len)
    everything = float(len(prompts))
    cells = [case.cell(IDENTICAL, {STOCK: everything, DYNTS: same}, dict.fromkeys(SIDES, everything))]
    for index, load in enumerate(loads):
        cells.append(cell_of(setup, load, {side: sides[side].served[index].tpot_ms for side in SIDES}))
    report(args.out, cells, f"gpu.{BENCH}")
    if same != len(prompts):
        raise SystemExit(f"{len(prompts) - same} of {len(prompts)} greedy requests differ from stock's")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out(f"gpu.{BENCH}", __doc__)
    add_server_arguments(parser)
    add = parser.add_argument
    add("--batch", nargs="+", type=int, default=[1, 32], help="requests that run at once")
    add("--question-len", type=int, default=200, help="prompt tokens")
    add("--output-len", type=int, default=1024, help="tokens each generates")
    add("--requests", type=int, default=4, help="greedy requests whose tokens are compared")
    return parser.parse_args()


def check_length(setup: Setup, question_len: int, output_len: int) -> None:
    """Refuse lengths that reach the budget.

    Raises:
        SystemExit: naming flag, value and remedy.
    """
    room = setup.config.budget_for(question_len) - question_len
    if output_len >= room:
        raise SystemExit(f"--output-len {output_len} reaches the budget; at most {room - 1} does not")


def prompts_of(shape: str, count: int, length: int) -> list[list[int]]:
    """Draw questions, without special tokens and markers."""
    draw = random.Random(0)
    words = range(FIRST_WORD, CONFIGS[shape]["vocab_size"])
    return [draw.choices(words, k=length) for _ in range(count)]


def num_identical(stock: Sequence[list[int]], dynts: Sequence[list[int]]) -> int:
    """Count requests whose tokens are the same."""
    return sum(ours == theirs for ours, theirs in zip(dynts, stock, strict=True))


def cell_of(setup: Setup, load: RandomLoad, tpot_ms: dict[str, float]) -> Cell:
    """Put a batch's time per token beside its prediction."""
    outlook = outlook_of(setup, load.input_len, load.output_len)
    batch = load.num_prompts
    return Case(BENCH, setup.shape, batch, load.output_len).cell(
        "ms per output token",
        tpot_ms,
        outlook and {side: 1e3 * outlook.step_seconds(side, batch) for side in SIDES},
    )


if __name__ == "__main__":
    main()
