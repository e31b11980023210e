"""What the roofline says before anything is measured: a decode step's bytes, its time, what fits.

    python -m benchmark.predict --shape llama-8b --gpu h200 --batch 1 8 32 --output-len 16384

Arithmetic alone: no GPU, no server. Host, launches and compactions are left out. Lengths are means over a
generation; at capacity as many requests run as the pool holds of that mean length, stock's and DynTS's.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.harness.provenance import parser_of
from benchmark.harness.shapes import WINDOWS, read_shape
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
        """Bytes that a decode step reads: weights, keys and values, DynTS's predictor."""
        predictor = self.shape.predictor_bytes if side == DYNTS else 0
        kv_bytes = batch * self.mean_len(side) * self.shape.kv_token_bytes
        return self.shape.read_bytes + predictor + kv_bytes

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
        return max(1, int(pool / self.mean_len(side)))

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


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("predict", __doc__)
    add = parser.add_argument
    add("--shape", nargs="+", default=["llama-8b"], choices=sorted(SHAPES), help="model shapes")
    add("--model", type=Path, help="a model's folder or config.json, instead of --shape")
    add("--gpu", default="h200", choices=sorted(GPUS))
    add("--batch", nargs="+", type=int, default=[1, 8, 32], help="requests that run at once")
    add("--output-len", nargs="+", type=int, default=[16384], help="tokens each request generates")
    add("--question-len", type=int, default=200, help="prompt tokens")
    add("--pool-tokens", type=int, help="KV tokens of the pool; default: what fits beside the weights")
    add_window_flags(parser, "the paper's for the shape, for a --model those of qwen-7b")
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> list[tuple[ModelShape, DynTSConfig]]:
    """Return the shapes that are asked about, each with its windows."""
    shapes = [read_shape(args.model)] if args.model else [SHAPES[name] for name in args.shape]
    return [(shape, windows_of(args, WINDOWS.get(shape.name, PAPER_CONFIG))) for shape in shapes]


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


def print_table(outlook: Outlook, results: list[dict[str, Any]]) -> None:
    """Print one length's predictions for people."""
    print(
        f"\n{outlook.shape.name} on one {outlook.gpu.name}, {outlook.question_len} + "
        f"{outlook.output_len} tokens; predicted, not measured"
    )
    print(f"{'batch':>6}{'GB read, stock':>16}{'DynTS':>8}{'ms, stock':>11}{'DynTS':>8}{'faster':>8}")
    for result in results:
        gigabytes, times = result["step_bytes"], result["step_ms"]
        print(
            f"{result['batch']:6}{gigabytes[STOCK] / 1e9:16.2f}{gigabytes[DYNTS] / 1e9:8.2f}"
            f"{times[STOCK]:11.2f}{times[DYNTS]:8.2f}{result['speedup']:7.2f}x"
        )
    stock, dynts = (outlook.fitting(side) for side in SIDES)
    print(
        f"what fits: {stock} requests, {dynts} with DynTS: {outlook.speedup_at_capacity():.2f}x the "
        f"tokens per second\nthe predictor pays from {break_even_tokens(outlook.shape):,.0f} KV tokens "
        "fewer, over all requests"
    )


if __name__ == "__main__":
    main()
