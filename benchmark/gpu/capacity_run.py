"""More requests than fit: how many run at once, how many tokens per second, when all are done.

    python -m benchmark.gpu.capacity_run --shape llama-8b     # 16,384 and 32,768 tokens, 2.5 hours

All requests are sent at once. Unless --num-prompts says how many, they are POOLFULS times what the pool
of the stock server holds of compacted requests, the same number for both sides.
"""

import argparse
from math import ceil

from benchmark.gpu.comparison import Sides, compare
from benchmark.gpu.report import Case, Cell, outlook_of, parser_with_out
from benchmark.gpu.servers import Setup, add_server_arguments
from benchmark.gpu.serving import RandomLoad
from benchmark.gpu.targets import PEAK, THROUGHPUT
from benchmark.simulation.job import SIDES
from sgl_dynts.config import DynTSConfig
from sgl_dynts.roofline import mean_compacted_len

BENCH = "capacity"
POOLFULS = 1.25


def main() -> None:
    """Run both sides, report, draw."""
    args = parse()
    compare(
        args,
        "gpu.capacity_run",
        lambda server: loads_of(args, server.setup.windows, server.pool_tokens),
        cells_of,
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out("gpu.capacity_run", __doc__)
    add_server_arguments(parser)
    add = parser.add_argument
    lengths = [16384, 32768]
    add("--output-len", nargs="+", type=int, default=lengths, help="tokens each request generates")
    add("--question-len", type=int, default=200, help="prompt tokens")
    add("--num-prompts", type=int, help="requests; must be more than fit")
    return parser.parse_args()


def loads_of(args: argparse.Namespace, config: DynTSConfig, pool_tokens: int) -> list[RandomLoad]:
    """Return a load of each length for a pool of this size."""
    return [
        RandomLoad(
            args.question_len,
            output_len,
            args.num_prompts or num_prompts(config, pool_tokens, args.question_len, output_len),
        )
        for output_len in args.output_len
    ]


def num_prompts(config: DynTSConfig, pool_tokens: int, question_len: int, output_len: int) -> int:
    """Return POOLFULS times the compacted requests that a pool holds, by their mean length."""
    budget, retained = config.budget_for(question_len), config.retained_len(question_len)
    mean = mean_compacted_len(question_len, output_len, budget, retained)
    return ceil(POOLFULS * pool_tokens / mean)


def cells_of(setup: Setup, load: RandomLoad, sides: Sides) -> list[Cell]:
    """Put one length's measures beside their predictions; throughput as at a full pool."""
    outlook = outlook_of(setup, load.input_len, load.output_len)
    case = Case(BENCH, setup.shape, load.num_prompts, load.output_len)
    fitting = outlook and {side: min(load.num_prompts, outlook.fitting(side)) for side in SIDES}
    rates = (
        {side: outlook.tokens_per_s(side, fitting[side]) for side in SIDES}
        if outlook and fitting
        else None
    )
    return [
        case.cell(THROUGHPUT, {side: sides[side][0].tokens_per_s for side in SIDES}, rates),
        case.cell(
            "running requests, peak", {side: sides[side][1].peak_running for side in SIDES}, fitting
        ),
        case.cell(PEAK, {side: sides[side][1].peak_tokens for side in SIDES}),
        case.cell("s until all are done", {side: sides[side][0].duration_s for side in SIDES}),
        case.cell("ms to first token, median", {side: sides[side][0].ttft_ms for side in SIDES}),
    ]


if __name__ == "__main__":
    main()
