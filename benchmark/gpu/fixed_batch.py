"""A batch of requests that starts and ends together: time per token, tokens per second, peak of the KV.

    python -m benchmark.gpu.fixed_batch --shape qwen-7b                   # the whole matrix, 2 to 3 hours
    python -m benchmark.gpu.fixed_batch --shape qwen-7b --batch 1 32 --output-len 16384

A batch that does not fit the pool waits in part, as it would anywhere. When both servers have ended, the
kernels of compaction and scoring are timed alone, and their share of DynTS's time per token is reported.
"""

import argparse
from itertools import product

from benchmark.gpu import kernels
from benchmark.gpu.comparison import Sides, compare
from benchmark.gpu.plots import draw_throughput
from benchmark.gpu.report import Case, Cell, device_name, outlook_of, parser_with_out
from benchmark.gpu.servers import Setup, add_server_arguments
from benchmark.gpu.serving import RandomLoad
from benchmark.gpu.targets import COMPACTION_SHARE, PEAK, SCORING_SHARE, THROUGHPUT, TIME
from benchmark.gpu.timing import this_device
from benchmark.predict import Outlook
from benchmark.simulation.job import DYNTS, SIDES
from sgl_dynts.config import DynTSConfig
from sgl_dynts.roofline import compaction_seconds

BENCH = "fixed_batch"


def main() -> None:
    """Run both sides, report, draw."""
    args = parse()
    cells = compare(args, f"gpu.{BENCH}", lambda _server: loads_of(args), cells_of)
    throughput = [cell for cell in cells if cell.unit == THROUGHPUT]
    draw_throughput(args.out.parent / f"gpu-{BENCH}-{args.shape}.png", throughput, device_name())


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out(f"gpu.{BENCH}", __doc__)
    add_server_arguments(parser)
    add = parser.add_argument
    batches, lengths = [1, 8, 20, 32, 64, 128], [4096, 16384, 32768]
    add("--batch", nargs="+", type=int, default=batches, help="requests that run at once")
    add("--output-len", nargs="+", type=int, default=lengths, help="tokens each generates")
    add("--question-len", type=int, default=200, help="prompt tokens")
    return parser.parse_args()


def loads_of(args: argparse.Namespace) -> list[RandomLoad]:
    """Return a load for each batch and length."""
    return [
        RandomLoad(args.question_len, output_len, batch, max_concurrency=batch)
        for batch, output_len in product(args.batch, args.output_len)
    ]


def cells_of(setup: Setup, load: RandomLoad, sides: Sides) -> list[Cell]:
    """Put one load's measures beside their predictions."""
    outlook = outlook_of(setup, load.input_len, load.output_len)
    batch = load.num_prompts
    case = Case(BENCH, setup.shape, batch, load.output_len)
    served = {side: sides[side][0] for side in SIDES}
    return [
        case.cell(
            TIME,
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
        *share_cells(setup, load, case, served[DYNTS].tpot_ms, outlook),
    ]


def share_cells(
    setup: Setup, load: RandomLoad, case: Case, tpot_ms: float, outlook: Outlook | None
) -> list[Cell]:
    """Put the shares that compaction and scoring have of a decode step beside their predictions."""
    device, batch = this_device(), load.num_prompts
    rounds = rounds_per_step(setup.windows, load)
    round_ms = kernels.compaction_milliseconds(setup.windows, 1, setup.windows.budget, device)
    scoring_ms = kernels.scoring_milliseconds(setup.shape, batch, device)
    predicted = outlook and predicted_shares(outlook, setup, load, rounds)
    return [
        case.cell(unit, {DYNTS: 100 * spent / tpot_ms}, predicted and {DYNTS: predicted[unit]})
        for unit, spent in ((COMPACTION_SHARE, rounds * round_ms), (SCORING_SHARE, scoring_ms))
    ]


def rounds_per_step(config: DynTSConfig, load: RandomLoad) -> float:
    """Return compactions per decode step, each in a round of its own, which is the most they can cost."""
    over = load.input_len + load.output_len - config.budget_for(load.input_len)
    compactions = 1 + over // config.period if over >= 0 else 0
    return load.num_prompts * compactions / load.output_len


def predicted_shares(outlook: Outlook, setup: Setup, load: RandomLoad, rounds: float) -> dict[str, float]:
    """Return both shares, in percent, by the roofline."""
    step_ms = 1e3 * outlook.step_seconds(DYNTS, load.num_prompts)
    round_ms = 1e3 * compaction_seconds(outlook.gpu, setup.windows.budget)
    scoring_ms = kernels.predicted_scoring_milliseconds(outlook.gpu, setup.shape, load.num_prompts)
    return {
        COMPACTION_SHARE: 100 * rounds * round_ms / step_ms,
        SCORING_SHARE: 100 * scoring_ms / step_ms,
    }


if __name__ == "__main__":
    main()
