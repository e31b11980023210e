"""Sizes of the models served with random weights, and the roofline's numbers of a config.json."""

import json
from pathlib import Path
from typing import Any

from sgl_dynts.config import PAPER_CONFIGS, DynTSConfig
from sgl_dynts.roofline import GPUS, SHAPES, Gpu, ModelShape

TINY = "tiny"

_COMMON = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}
_QWEN = {**_COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1e6}
_LLAMA = {**_COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 5e5}


def _sizes(
    layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int
) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen-7b": _QWEN | _sizes(28, 3584, 18944, 28, 4, 152064),
    "llama-8b": _LLAMA | _sizes(32, 4096, 14336, 32, 8, 128256),
    TINY: _LLAMA | _sizes(2, 64, 96, 4, 2, 256) | {"dtype": "float32", "max_position_embeddings": 4096},
}
"""Contents of config.json by shape."""

DEVICES = {"NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100"}
"""The roofline's GPUS by CUDA's names, whole: an H100 on a PCIe card is another device."""

WINDOWS = PAPER_CONFIGS | {TINY: DynTSConfig(96, 16, 0.4)}
"""DynTS's windows by shape: the paper's, and small ones of the same proportions."""


def shape_of(name: str, config: dict[str, Any]) -> ModelShape:
    """Build the roofline's numbers of a dense transformer from its config.json.

    Args:
        name: to call it by.
        config: contents of config.json; model_type llama, qwen2 or qwen3.

    Raises:
        ValueError: it is another kind of model, whose weights this does not count.
    """
    kind = config.get("model_type")
    if kind not in ("llama", "qwen2", "qwen3"):
        raise ValueError(
            f"model_type {kind!r} of {name}: weights are counted for llama, qwen2 and qwen3; "
            f"name one of the shapes {', '.join(sorted(SHAPES))} with --shape"
        )
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return ModelShape(
        name=name,
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
        num_parameters=_num_parameters(config, heads * head_dim, kv_heads * head_dim, head_dim),
    )


def _num_parameters(config: dict[str, Any], query_width: int, key_width: int, head_dim: int) -> int:
    """Count weights, a tied output head twice, since a step reads it."""
    hidden = config["hidden_size"]
    attention = 2 * hidden * query_width + 2 * hidden * key_width
    if config["model_type"] == "qwen2":
        attention += query_width + 2 * key_width  # biases
    if config["model_type"] == "qwen3":
        attention += 2 * head_dim  # norms of queries and keys
    layer = attention + 3 * hidden * config["intermediate_size"] + 2 * hidden
    return config["num_hidden_layers"] * layer + hidden + 2 * config["vocab_size"] * hidden


def read_shape(path: Path) -> ModelShape:
    """Build the roofline's numbers of a model's folder or config.json."""
    path = path / "config.json" if path.is_dir() else path
    return shape_of(path.parent.name or path.name, json.loads(path.read_text()))


def roofline_shape(name: str) -> ModelShape:
    """Return a named shape's numbers, the tiny one's too."""
    return SHAPES[name] if name in SHAPES else shape_of(name, CONFIGS[name])


def gpu_named(device: str) -> Gpu | None:
    """Return the roofline's GPU of a device's name as CUDA tells it, None for one it does not know."""
    name = DEVICES.get(device)
    return None if name is None else GPUS[name]
