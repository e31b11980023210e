"""Peak memory of computing training targets, against keeping every attention matrix of the model.

Each point is a process of its own on the CPU: a tiny random Qwen3 in float32, random tokens. What is
reported is the process's peak (ru_maxrss) less what it held before. The naive way asks transformers for
all attention matrices (eager, output_attentions=True); where the estimate for it is above
--naive-limit-gib it is not run.

    python -m benchmark.target_memory --lengths 1024 2048 4096
"""

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

from benchmark.charts import draw_target_memory
from benchmark.one_target import measure
from benchmark.provenance import RESULTS, keep, parser_of, provenance

GIB = 1 << 30
TARGETS = ("answer", "future", "gradient", "naive")
MODEL = ("num_layers", "num_heads", "num_kv_heads", "head_dim")
SETTINGS = ("target", "seq_len", "distance", "answer_len", *MODEL)
TRANSIENTS = 3
"""Matrices of one layer that eager attention holds besides its result: logits, masked, weights."""


def main() -> None:
    """Run the points, shortest first, and report each."""
    args = parse()
    print(f"{'target':10}{'tokens':>8}{'MiB':>10}{'seconds':>10}")
    for length in sorted(args.lengths):
        for target in args.targets:
            result = run_point(args, target, length)
            print_row(result)
            print(json.dumps(result), flush=True)
            keep(args.out, result, SETTINGS)
    draw_target_memory(args.out.with_suffix(".png"), json.loads(args.out.read_text()))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("target_memory", __doc__)
    add = parser.add_argument
    lengths = [1024, 2048, 4096, 8192, 16384]
    add("--lengths", nargs="+", type=int, default=lengths, help="tokens of a trace")
    add("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    add("--distance", type=int, default=128, help="of the future target, tokens")
    add("--answer-len", type=int, default=128, help="answer tokens of each trace")
    add("--num-layers", type=int, default=4)
    add("--num-heads", type=int, default=4)
    add("--num-kv-heads", type=int, default=2)
    add("--head-dim", type=int, default=16)
    add("--naive-limit-gib", type=float, default=4.0, help="the naive way is not run above this estimate")
    add("--max-minutes", type=float, default=10, help="real time after which a point is given up")
    add("--out", type=Path, default=RESULTS / "target_memory.json", help="JSON list; a chart beside it")
    return parser.parse_args()


def run_point(args: argparse.Namespace, target: str, seq_len: int) -> dict[str, Any]:
    """Run one point in a process of its own, or say why not."""
    values = vars(args) | {"target": target, "seq_len": seq_len}
    point = {name: values[name] for name in SETTINGS}
    return {**point, **measure_or_refuse(point, args), **provenance("nothing simulated, one CPU thread")}


def measure_or_refuse(point: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return what the point took, or `not_run` with what it would take."""
    estimate = naive_bytes(point) / GIB
    if point["target"] == "naive" and estimate > args.naive_limit_gib:
        limit = f"the limit is {args.naive_limit_gib:g} GiB"
        return {"not_run": f"would need {estimate:.1f} GiB, {limit}", "estimated_gib": round(estimate, 2)}
    # A fork has what was imported here and a peak of its own.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply_async(measure, (point,)).get(timeout=60 * args.max_minutes)


def naive_bytes(point: dict[str, Any]) -> int:
    """Estimate of the naive way: float32 matrices of all layers, and one layer's transients."""
    matrices = (point["num_layers"] + TRANSIENTS) * point["num_heads"]
    return 4 * matrices * point["seq_len"] ** 2


def print_row(result: dict[str, Any]) -> None:
    """Print one point for people."""
    measured = result.get("not_run") or f"{result['added_mib']:>10,.1f}{result['seconds']:>10.1f}"
    print(f"{result['target']:10}{result['seq_len']:>8,}{measured}")


if __name__ == "__main__":
    main()
