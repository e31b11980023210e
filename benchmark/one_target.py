"""One point of `benchmark.target_memory`: compute one target once and return what it took."""

import resource
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from sgl_dynts.training.importance import (
    TraceSpans,
    answer_importance,
    future_importance,
    gradient_importance,
)

MIB = 1 << 20
VOCAB = 128


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
