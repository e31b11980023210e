"""What a device that is lent for minutes has time for: both servers started at once, asked in turn.

    python -m benchmark.gpu.short --shape qwen-7b --batch 32 1 --output-len 16384

First what ``untriggered`` measures, at --untriggered-len, then what ``fixed_batch`` does, the first batch
first; each is reported as soon as it is measured. The server that is not asked anything holds memory and
launches nothing. Both pools hold the largest batch at its full length, no more, CUDA graphs are captured
up to that batch, and the device must have room for both sides' pools and weights.
"""

import argparse
from dataclasses import replace

from benchmark.gpu import fixed_batch, untriggered
from benchmark.gpu.comparison import draw
from benchmark.gpu.report import parser_with_out, report
from benchmark.gpu.servers import RunningServer, Setup, add_server_arguments, setup_of, side_by_side
from benchmark.gpu.serving import run_load
from benchmark.simulation.job import SIDES

PROGRAM = "gpu.short"
SLACK_TOKENS = 8192
"""Of a pool, for the prompt that ``untriggered`` holds the server with."""


def main() -> None:
    """Run both sides and report."""
    args = parse()
    setup = setup_of(args)
    pool = args.pool_tokens or max(args.batch) * (args.question_len + args.output_len) + SLACK_TOKENS
    largest = max(*args.batch, *args.untriggered_batch)
    setup = replace(setup, side_by_side=True, pool_tokens=pool, graph_batch=largest)
    with side_by_side(setup) as servers:
        if args.untriggered_len:
            run_untriggered(args, setup, servers)
        run_batches(args, setup, servers)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out(PROGRAM, __doc__)
    add_server_arguments(parser)
    add = parser.add_argument
    add("--batch", nargs="+", type=int, default=[32, 1], help="requests that run at once, in this order")
    add("--output-len", type=int, default=16384, help="tokens each of fixed_batch generates")
    add("--question-len", type=int, default=200, help="prompt tokens")
    add("--untriggered-len", type=int, default=512, help="tokens each of untriggered generates; 0: none")
    add("--untriggered-batch", nargs="+", type=int, default=[1, 32], help="requests that run at once")
    add("--requests", type=int, default=2, help="of untriggered, one after the other")
    return parser.parse_args()


def run_untriggered(args: argparse.Namespace, setup: Setup, servers: dict[str, RunningServer]) -> None:
    """Measure and report ``untriggered``; other tokens than stock's are printed, not raised."""
    own = {"output_len": args.untriggered_len, "batch": args.untriggered_batch}
    asked = argparse.Namespace(**{**vars(args), **own})
    untriggered.check_length(setup, asked.question_len, asked.output_len)
    sides = {side: untriggered.measure(servers[side], asked) for side in SIDES}
    try:
        untriggered.report_sides(asked, setup, sides, PROGRAM)
    except untriggered.DifferenceError as error:
        print(error, flush=True)


def run_batches(args: argparse.Namespace, setup: Setup, servers: dict[str, RunningServer]) -> None:
    """Measure and report each batch."""
    asked = argparse.Namespace(**{**vars(args), "output_len": [args.output_len]})
    for load in fixed_batch.loads_of(asked):
        sides = {side: run_load(servers[side], load) for side in SIDES}
        report(args, fixed_batch.cells_of(setup, load, sides), PROGRAM)
        draw(args, fixed_batch.BENCH, load, sides)


if __name__ == "__main__":
    main()
