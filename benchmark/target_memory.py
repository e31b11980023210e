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
import resource
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmark.harness.charts import draw_target_memory
from benchmark.harness.provenance import RESULTS, parser_of, provenance, publish
from sgl_dynts.training.importance import (
    TraceSpans,
    answer_importance,
    future_importance,
    gradient_importance,
)

GIB, MIB = 1 << 30, 1 << 20
TARGETS = ("answer", "future", "gradient", "naive")
MODEL = ("num_layers", "num_heads", "num_kv_heads", "head_dim")
SETTINGS = ("target", "seq_len", "distance", "answer_len", *MODEL)
VOCAB = 128
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
            publish(args.out, result, SETTINGS)
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


def measure(point: dict[str, Any]) -> dict[str, float]:
    """Return MiB held beyond model and libraries at the peak, and seconds."""
    torch.set_num_threads(1)
    model = new_model(point)
    compute(model, {**point, "seq_len": 32, "answer_len": 8})  # loads what is loaded on first use
    base, start = resident_bytes(), perf_counter()
    compute(model, point)
    seconds = perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"added_mib": round((peak - base) / MIB, 1), "seconds": round(seconds, 2)}


def new_model(point: dict[str, Any]) -> PreTrainedModel:
    """A random Qwen3 in float32."""
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=point["num_layers"],
        num_attention_heads=point["num_heads"],
        num_key_value_heads=point["num_kv_heads"],
        head_dim=point["head_dim"],
        max_position_embeddings=1 << 20,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).eval()


def compute(model: PreTrainedModel, point: dict[str, Any]) -> Tensor:
    """Compute the point's target of random tokens."""
    seq_len, answer_len = point["seq_len"], point["answer_len"]
    spans = TraceSpans(0, seq_len - answer_len - 1, seq_len)
    ids = torch.randint(VOCAB, (seq_len,), generator=torch.Generator().manual_seed(0))
    match point["target"]:
        case "answer":
            return answer_importance(model, ids, spans).targets
        case "future":
            return future_importance(model, ids, spans, point["distance"]).targets
        case "gradient":
            return gradient_importance(model, ids, spans).targets
        case _:
            return naive_target(model, ids, spans)


@torch.no_grad()
def naive_target(model: PreTrainedModel, ids: Tensor, spans: TraceSpans) -> Tensor:
    """The answer's target from all attention matrices of the model, as transformers returns them."""
    model.set_attn_implementation("eager")
    attentions = model.base_model(ids[None], use_cache=False, output_attentions=True).attentions
    rows = [layer[0, :, spans.answer_start :].mean(dim=0) for layer in attentions]
    return torch.stack(rows).mean(dim=(0, 1))[spans.thinking]


def resident_bytes() -> int:
    """Memory this process holds now; its peak so far may be that of an import."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def print_row(result: dict[str, Any]) -> None:
    """Print one point for people."""
    measured = result.get("not_run") or f"{result['added_mib']:>10,.1f}{result['seconds']:>10.1f}"
    print(f"{result['target']:10}{result['seq_len']:>8,}{measured}")


if __name__ == "__main__":
    main()
