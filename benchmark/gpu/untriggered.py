"""Outputs shorter than the budget, so that nothing is compacted: what DynTS costs, and the same tokens.

    python -m benchmark.gpu.untriggered --shape qwen-7b --batch 1 32

Greedy requests are sent to each server, one after the other and then --batch at once; their token ids
must be stock's. In 16 bits a token also depends on which requests share a forward. So those of a batch
arrive behind a prompt that keeps the server busy, and are computed together from their first token on;
and stock is asked twice: its own column says how many of its tokens came again. Fewer with DynTS is a
failure of the command.
"""

import argparse
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.gpu.models import FIRST_WORD
from benchmark.gpu.report import Case, Cell, outlook_of, parser_with_out, report
from benchmark.gpu.servers import RunningServer, Setup, add_server_arguments, run_sides, setup_of
from benchmark.gpu.serving import RandomLoad, Served, run_load
from benchmark.gpu.targets import IDENTICAL, TIME
from benchmark.harness.shapes import CONFIGS, TINY
from benchmark.simulation.job import DYNTS, SIDES, STOCK

BENCH = "untriggered"
HOLDING_LEN = 7000
"""Prompt tokens that keep a GPU busy for some 0.2 s; a default prefill takes them in one chunk."""
TINY_HOLDING_LEN = 1500
HOLDING_SECONDS = 0.05
"""After which the holding prompt is being computed."""
Tokens = list[list[int]]


class DifferenceError(RuntimeError):
    """DynTS gave other tokens than stock where it compacted nothing."""


@dataclass(frozen=True)
class Measured:
    """One side.

    ``tokens`` are the greedy tokens of every request, by batch, and ``again`` those of the second time.
    ``served`` is what the load generator measured of each batch.
    """

    tokens: dict[int, Tokens]
    again: dict[int, Tokens]
    served: list[Served]


def main() -> None:
    """Run both sides, report, fail if a token differs."""
    args = parse()
    setup = setup_of(args)
    check_length(setup, args.question_len, args.output_len)
    sides = run_sides(setup, lambda server: measure(server, args))
    try:
        report_sides(args, setup, sides, f"gpu.{BENCH}")
    except DifferenceError as error:
        raise SystemExit(str(error)) from error


def measure(server: RunningServer, args: argparse.Namespace) -> Measured:
    """Ask one side's server for its greedy tokens, twice, then send the loads."""
    tokens, again = (tokens_of(server, args) for _ in range(2))
    return Measured(tokens, again, [run_load(server, load)[0] for load in loads_of(args)])


def loads_of(args: argparse.Namespace) -> list[RandomLoad]:
    """Return a load for each batch."""
    return [RandomLoad(args.question_len, args.output_len, batch, batch) for batch in args.batch]


def report_sides(
    args: argparse.Namespace, setup: Setup, sides: dict[str, Measured], program: str
) -> None:
    """Report both sides' tokens and times.

    Raises:
        DifferenceError: a token differs; everything is reported before.
    """
    same = [identity_cell(setup.shape, batch, args.output_len, sides) for batch in args.batch]
    times = [
        time_cell(setup, load, {side: sides[side].served[index].tpot_ms for side in SIDES})
        for index, load in enumerate(loads_of(args))
    ]
    report(args, [*same, *times], program)
    refuse_differences(same)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out(f"gpu.{BENCH}", __doc__)
    add_server_arguments(parser)
    add = parser.add_argument
    add("--batch", nargs="+", type=int, default=[1, 32], help="requests that run at once")
    add("--question-len", type=int, default=200, help="prompt tokens")
    add("--output-len", type=int, default=1024, help="tokens each generates")
    add("--requests", type=int, default=4, help="whose tokens are compared one after the other")
    return parser.parse_args()


def check_length(setup: Setup, question_len: int, output_len: int) -> None:
    """Refuse lengths that reach the budget.

    Raises:
        SystemExit: naming flag, value and remedy.
    """
    room = setup.windows.budget_for(question_len) - question_len
    if output_len >= room:
        raise SystemExit(f"--output-len {output_len} reaches the budget; at most {room - 1} does not")


def tokens_of(server: RunningServer, args: argparse.Namespace) -> dict[int, Tokens]:
    """Return greedy tokens for each batch; no prompt is found in the prefix cache."""
    found = {}
    for batch in args.batch:
        server.flush_cache()
        count = args.requests if batch == 1 else batch
        prompts = prompts_of(server.setup.shape, count, args.question_len, seed=batch)
        found[batch] = (
            [server.generate([prompt], args.output_len)[0] for prompt in prompts]
            if batch == 1
            else together(server, prompts, args.output_len)
        )
    return found


def together(server: RunningServer, prompts: Tokens, output_len: int) -> Tokens:
    """Return greedy tokens of prompts that wait for one forward and are computed in it together."""
    length = TINY_HOLDING_LEN if server.setup.shape == TINY else HOLDING_LEN
    holding = prompts_of(server.setup.shape, 1, length, seed=0)
    holder = threading.Thread(target=server.generate, args=(holding, 1), daemon=True)
    holder.start()
    time.sleep(HOLDING_SECONDS)
    tokens = server.generate(prompts, output_len)
    holder.join()
    return tokens


def prompts_of(shape: str, count: int, length: int, seed: int) -> Tokens:
    """Draw questions, without special tokens and markers."""
    draw = random.Random(seed)
    words = range(FIRST_WORD, CONFIGS[shape]["vocab_size"])
    return [draw.choices(words, k=length) for _ in range(count)]


def num_among(found: Tokens, *runs: Tokens) -> int:
    """Count requests whose tokens are those that some run gave the same request."""
    return sum(tokens in known for tokens, *known in zip(found, *runs, strict=True))


def identity_cell(shape: str, batch: int, output_len: int, sides: dict[str, Measured]) -> Cell:
    """Count the requests that got tokens of stock's: from stock both times, and from DynTS.

    DynTS is also asked twice; the time that agrees less counts.
    """
    stock, dynts = sides[STOCK], sides[DYNTS]
    first, second = stock.tokens[batch], stock.again[batch]
    same = {
        STOCK: num_among(second, first),
        DYNTS: min(num_among(run[batch], first, second) for run in (dynts.tokens, dynts.again)),
    }
    return Case(BENCH, shape, batch, output_len).cell(
        IDENTICAL, same, dict.fromkeys(SIDES, float(len(first)))
    )


def time_cell(setup: Setup, load: RandomLoad, tpot_ms: dict[str, float]) -> Cell:
    """Put a batch's time per token beside its prediction."""
    outlook = outlook_of(setup, load.input_len, load.output_len)
    batch = load.num_prompts
    return Case(BENCH, setup.shape, batch, load.output_len).cell(
        TIME, tpot_ms, outlook and {side: 1e3 * outlook.step_seconds(side, batch) for side in SIDES}
    )


def refuse_differences(cells: Sequence[Cell]) -> None:
    """Fail where DynTS gave fewer requests stock's tokens than stock itself.

    Raises:
        DifferenceError: naming the batches.
    """
    worse = [str(cell.batch) for cell in cells if (cell.dynts or 0) < (cell.stock or 0)]
    if worse:
        raise DifferenceError(f"DynTS gives other tokens than stock at batch {', '.join(worse)}")


if __name__ == "__main__":
    main()
