"""More requests than fit: how many run at once, how many tokens per second, when all are done.

    python -m benchmark.gpu.capacity_run --shape llama-8b --output-len 16384 32768

All requests are sent at once. Unless --num-prompts says how many, they are POOLFULS times what the pool
of the stock server holds of compacted requests, the same number for both sides.
"""

import argparse
from math import ceil

from benchmark.gpu.plots import draw_kv
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
from benchmark.gpu.servers import (
    RunningServer,
    Setup,
    Watch,
    add_server_arguments,
    run_sides,
    setup_of,
)
from benchmark.gpu.serving import RandomLoad, Served, run_load
from sgl_dynts.config import DynTSConfig
from sgl_dynts.roofline import mean_compacted_len
from sglang_dynts.simulation.job import DYNTS, SIDES, STOCK

BENCH = "capacity"
POOLFULS = 1.25


class Measurement:
    """Runs every length on one server after the other; the stock server decides how many requests."""

    def __init__(self, args: argparse.Namespace, config: DynTSConfig) -> None:
        """Take what the command line says, and the windows."""
        self._args = args
        self._config = config
        self.loads: list[RandomLoad] = []

    def __call__(self, server: RunningServer) -> list[tuple[Served, Watch]]:
        """Run the loads, drawn up at the first call."""
        if not self.loads:
            self.loads = [self.load_of(server.pool_tokens, length) for length in self._args.output_len]
        return [run_load(server, load) for load in self.loads]

    def load_of(self, pool_tokens: int, output_len: int) -> RandomLoad:
        """Return the load of one length for a pool of this size."""
        question_len = self._args.question_len
        count = self._args.num_prompts or num_prompts(self._config, pool_tokens, question_len, output_len)
        return RandomLoad(question_len, output_len, count)


def num_prompts(config: DynTSConfig, pool_tokens: int, question_len: int, output_len: int) -> int:
    """Return POOLFULS times the compacted requests that a pool holds, by their mean length."""
    budget, retained = config.budget_for(question_len), config.retained_len(question_len)
    mean = mean_compacted_len(question_len, output_len, budget, retained)
    return ceil(POOLFULS * pool_tokens / mean)


def main() -> None:
    """Run both sides, report, draw."""
    args = parse()
    setup = setup_of(args)
    measure = Measurement(args, setup.config)
    sides = run_sides(setup, measure)
    measured = list(zip(measure.loads, sides[STOCK], sides[DYNTS], strict=True))
    cells = [
        cell
        for load, stock, dynts in measured
        for cell in cells_of(setup, load, {STOCK: stock, DYNTS: dynts})
    ]
    report(args.out, cells, "gpu.capacity_run")
    for load, stock, dynts in measured:
        path = args.out.parent / f"gpu-{BENCH}-{setup.shape}-{load.output_len}.png"
        title = f"{setup.shape} on {device_name()}: {load.num_prompts} x {load.output_len:,} tokens"
        draw_kv(path, {STOCK: stock[1], DYNTS: dynts[1]}, title)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out("gpu.capacity_run", __doc__)
    add_server_arguments(parser)
    add = parser.add_argument
    add("--output-len", nargs="+", type=int, default=[16384], help="tokens each request generates")
    add("--question-len", type=int, default=200, help="prompt tokens")
    add("--num-prompts", type=int, help="requests; must be more than fit")
    return parser.parse_args()


def cells_of(setup: Setup, load: RandomLoad, sides: dict[str, tuple[Served, Watch]]) -> list[Cell]:
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
