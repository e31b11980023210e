"""What the roofline says before anything is measured: a decode step's bytes, its time, what fits.

    python -m benchmark.predict --shape llama-8b --gpu h200 --batch 1 8 32 --output-len 16384

Arithmetic alone: no GPU, no server. Host, launches, compactions and what GPUs tell each other are left
out. Lengths are means over a generation; at capacity as many requests run as the pool holds of that mean
length, stock's and DynTS's. gpt-oss, DeepSeek, Qwen3-Next and Qwen3.5 have the precision and the GPUs
that `benchmark/harness/families.py` names.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmark.harness.families import FAMILIES
from benchmark.harness.provenance import keep, parser_of, provenance
from benchmark.harness.shapes import (
    STATES_ALONE,
    STATES_WITH_PREFIX_CACHE,
    WINDOWS,
    read_shape,
    roofline_shape,
)
from benchmark.harness.windows import windows_of
from benchmark.simulation.job import DYNTS, SIDES, STOCK
from sgl_dynts.config import PAPER_CONFIG, DynTSConfig
from sgl_dynts.roofline import (
    GPUS,
    SHAPES,
    Gpu,
    ModelShape,
    break_even_tokens,
    decode_seconds,
    mean_compacted_len,
    mean_full_len,
)
from sgl_dynts.window_flags import add_window_flags

SETTINGS = ("shape", "gpu", "gpus", "question_len", "output_len", "windows", "pool_tokens", "states")
"""What tells one row of a file of results from another."""


@dataclass(frozen=True)
class Outlook:
    """The roofline's view of requests of one length; ``pool_tokens`` None is all that fits."""

    gpu: Gpu
    shape: ModelShape
    config: DynTSConfig
    question_len: int
    output_len: int
    pool_tokens: int | None = None

    def mean_len(self, side: str) -> float:
        """KV tokens of a request, averaged over its generation."""
        if side == STOCK:
            return mean_full_len(self.question_len, self.output_len)
        budget = self.config.budget_for(self.question_len)
        retained = self.config.retained_len(self.question_len)
        return mean_compacted_len(self.question_len, self.output_len, budget, retained)

    def peak_len(self, side: str) -> int:
        """Most KV tokens of a request."""
        whole = self.question_len + self.output_len
        return whole if side == STOCK else min(whole, self.config.budget_for(self.question_len))

    def step_bytes(self, side: str, batch: float) -> float:
        """Bytes of a decode step on each GPU: weights, keys, values, states, DynTS's predictor."""
        weights = self.shape.weight_traffic(batch, predictor=side == DYNTS)
        return weights + self.shape.cache_traffic(batch, batch * self.mean_len(side))

    def step_seconds(self, side: str, batch: int) -> float:
        """Seconds of a decode step."""
        kv_tokens = batch * self.mean_len(side)
        return decode_seconds(self.gpu, self.shape, batch, kv_tokens, predictor=side == DYNTS)

    def tokens_per_s(self, side: str, batch: int) -> float:
        """Output tokens per second of a batch that decodes."""
        return batch / self.step_seconds(side, batch)

    def fitting(self, side: str) -> int:
        """Requests that a pool holds, by their mean length; at least 1."""
        pool = self.pool_tokens or self.shape.pool_tokens(self.gpu)
        return max(1, int(pool / self.shape.pool_share(self.mean_len(side))))

    def speedup(self, batch: int) -> float:
        """Stock's time per step over DynTS's, the same batch."""
        return self.step_seconds(STOCK, batch) / self.step_seconds(DYNTS, batch)

    def speedup_at_capacity(self) -> float:
        """DynTS's tokens per second over stock's, each with the batch that fits."""
        stock, dynts = (self.tokens_per_s(side, self.fitting(side)) for side in SIDES)
        return dynts / stock


def main() -> None:
    """Print the predictions."""
    args = parse()
    for shape, config in chosen(args):
        for output_len in args.output_len:
            outlook = Outlook(
                GPUS[args.gpu], shape, config, args.question_len, output_len, args.pool_tokens
            )
            results = [predict(outlook, batch) for batch in args.batch]
            print_table(outlook, results)
            for result in results:
                print(json.dumps(result), flush=True)
            if args.out:
                keep(args.out, at_capacity(outlook, args.batch), SETTINGS)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("predict", __doc__)
    add = parser.add_argument
    add(
        "--shape", nargs="+", default=["llama-8b"], choices=sorted(SHAPES | FAMILIES), help="model shapes"
    )
    add("--model", type=Path, help="a model's folder or config.json, instead of --shape")
    add("--gpu", default="h200", choices=sorted(GPUS))
    add("--batch", nargs="+", type=int, default=[1, 8, 32], help="requests that run at once")
    add("--output-len", nargs="+", type=int, default=[16384], help="tokens each request generates")
    add("--question-len", type=int, default=200, help="prompt tokens")
    add("--pool-tokens", type=int, help="KV tokens of the pool; default: what fits beside the weights")
    add("--states", nargs="+", type=int, default=STATES, help=STATES_HELP)
    add_window_flags(parser, "the paper's for the shape, for other models those of qwen-7b")
    add("--out", type=Path, help="JSON list that keeps what fits, a row for each shape and length")
    return parser.parse_args()


STATES = (STATES_WITH_PREFIX_CACHE, STATES_ALONE)
STATES_HELP = (
    f"recurrent states of a request, where a model has them: {STATES_WITH_PREFIX_CACHE} with SGLang's "
    f"prefix cache, {STATES_ALONE} without; each is told"
)


def chosen(args: argparse.Namespace) -> list[tuple[ModelShape, DynTSConfig]]:
    """Return the shapes that are asked about, each with its windows."""
    named = [read_shape(args.model)] if args.model else [roofline_shape(name) for name in args.shape]
    shapes = [each for shape in named for each in with_states(shape, args.states)]
    return [(shape, windows_of(args, WINDOWS.get(shape.name, PAPER_CONFIG))) for shape in shapes]


def with_states(shape: ModelShape, states: Sequence[int]) -> list[ModelShape]:
    """Return a shape with recurrent layers once for each number of states, another as it is."""
    return [replace(shape, num_states=each) for each in states] if shape.recurrent_layers else [shape]


def predict(outlook: Outlook, batch: int) -> dict[str, Any]:
    """Put one batch's predictions into one object."""
    return {
        "shape": outlook.shape.name,
        "gpu": outlook.gpu.name,
        "batch": batch,
        "output_len": outlook.output_len,
        "step_bytes": {side: outlook.step_bytes(side, batch) for side in SIDES},
        "step_ms": {side: 1e3 * outlook.step_seconds(side, batch) for side in SIDES},
        "speedup": outlook.speedup(batch),
        "fitting": {side: outlook.fitting(side) for side in SIDES},
        "speedup_at_capacity": outlook.speedup_at_capacity(),
        "break_even_tokens": break_even_tokens(outlook.shape),
    }


def at_capacity(outlook: Outlook, batches: Sequence[int]) -> dict[str, Any]:
    """Put what fits, and how fast it then is, into one object, with the speed-ups at some batches."""
    shape, fitting = outlook.shape, {side: outlook.fitting(side) for side in SIDES}
    rates = {side: outlook.tokens_per_s(side, fitting[side]) for side in SIDES}
    return {
        "shape": shape.name,
        "gpu": outlook.gpu.name,
        "gpus": shape.tp_size,
        "question_len": outlook.question_len,
        "output_len": outlook.output_len,
        "windows": list(outlook.config.given().values()),
        "pool_tokens": outlook.pool_tokens,
        "states": shape.num_states if shape.recurrent_layers else 0,
        "weight_bytes": shape.weight_bytes,
        "kv_token_bytes": shape.kv_token_bytes,
        "fixed_bytes": shape.fixed_bytes,
        "fitting": fitting,
        "fitting_ratio": fitting[DYNTS] / fitting[STOCK],
        "tokens_per_s": rates,
        "speedup": rates[DYNTS] / rates[STOCK],
        "speedup_at_batch": {str(batch): outlook.speedup(batch) for batch in batches},
        **provenance("arithmetic: no GPU, no server"),
    }


def print_table(outlook: Outlook, results: list[dict[str, Any]]) -> None:
    """Print one length's predictions for people."""
    print(
        f"\n{outlook.shape.name} on {outlook.shape.tp_size} {outlook.gpu.name}, {outlook.question_len} + "
        f"{outlook.output_len} tokens{told_states(outlook.shape)}; predicted, not measured"
    )
    print(f"{'batch':>6}{'GB read, stock':>16}{'DynTS':>8}{'ms, stock':>11}{'DynTS':>8}{'faster':>8}")
    for result in results:
        gigabytes, times = result["step_bytes"], result["step_ms"]
        print(
            f"{result['batch']:6}{gigabytes[STOCK] / 1e9:16.2f}{gigabytes[DYNTS] / 1e9:8.2f}"
            f"{times[STOCK]:11.2f}{times[DYNTS]:8.2f}{result['speedup']:7.2f}x"
        )
    (stock, dynts), speedup = (outlook.fitting(side) for side in SIDES), outlook.speedup_at_capacity()
    rates = (outlook.tokens_per_s(STOCK, stock), outlook.tokens_per_s(DYNTS, dynts))
    fewer = break_even_tokens(outlook.shape)
    print(
        f"what fits: {stock} requests, {dynts} with DynTS: {dynts / stock:.2f}x\n"
        f"tokens per second: {rates[0]:,.0f}, {rates[1]:,.0f} with DynTS: {speedup:.2f}x\n"
        f"the predictor pays from {fewer:,.0f} KV tokens fewer, over all requests"
    )


def told_states(shape: ModelShape) -> str:
    """Say how many states a request holds, nothing where a model has none."""
    return f", recurrent states per request: {shape.num_states}" if shape.recurrent_layers else ""


if __name__ == "__main__":
    main()
