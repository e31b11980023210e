"""Requests that share their first tokens: what the prefix cache gives, and tokens per second.

    python -m benchmark.gpu.shared_prefix --shape qwen-7b --groups 8 --prompts-per-group 8

The hit rate that is predicted is the most there can be: every request of a group but the first finds the
prefix. Requests that arrive before the first is computed find nothing, the same on both sides.
"""

import argparse

from benchmark.gpu.comparison import Sides, compare
from benchmark.gpu.report import Case, Cell, parser_with_out
from benchmark.gpu.servers import Setup, add_server_arguments
from benchmark.gpu.serving import SharedPrefixLoad
from benchmark.gpu.targets import THROUGHPUT
from benchmark.simulation.job import SIDES

BENCH = "shared_prefix"


def main() -> None:
    """Run both sides, report, draw."""
    args = parse()
    load = SharedPrefixLoad(
        groups=args.groups,
        prompts_per_group=args.prompts_per_group,
        prefix_len=args.prefix_len,
        question_len=args.question_len,
        output_len=args.output_len,
        max_concurrency=args.batch,
    )
    compare(args, f"gpu.{BENCH}", lambda _server: [load], cells_of)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out(f"gpu.{BENCH}", __doc__)
    add_server_arguments(parser)
    add = parser.add_argument
    add("--groups", type=int, default=8)
    add("--prompts-per-group", type=int, default=8)
    add("--prefix-len", type=int, default=1024, help="tokens that a group shares")
    add("--question-len", type=int, default=128, help="further prompt tokens")
    add("--output-len", type=int, default=6144, help="tokens each request generates")
    add("--batch", type=int, default=32, help="requests that run at once")
    return parser.parse_args()


def best_hit_rate(load: SharedPrefixLoad) -> float:
    """Return the share of prompt tokens found when each prefix is computed once."""
    found = (load.prompts_per_group - 1) * load.prefix_len
    return found / (load.prompts_per_group * (load.prefix_len + load.question_len))


def cells_of(setup: Setup, load: SharedPrefixLoad, sides: Sides) -> list[Cell]:
    """Put the measures beside what is expected."""
    case = Case(BENCH, setup.shape, load.max_concurrency, load.output_len)
    served = {side: sides[side][0] for side in SIDES}
    return [
        case.cell(
            "prefix hit rate",
            {side: served[side].hit_rate for side in SIDES},
            dict.fromkeys(SIDES, best_hit_rate(load)),
        ),
        case.cell(THROUGHPUT, {side: served[side].tokens_per_s for side in SIDES}),
        case.cell("ms to first token, median", {side: served[side].ttft_ms for side in SIDES}),
    ]


if __name__ == "__main__":
    main()
