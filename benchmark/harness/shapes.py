"""Sizes of the models served with random weights, and the roofline's numbers of a config.json."""

import json
from pathlib import Path
from typing import Any

from benchmark.harness.families import FAMILIES
from benchmark.harness.weights import (
    COUNTED,
    convolved_width,
    count_weights,
    head_dim_of,
    kv_heads_of,
    recurrent_layers_of,
)
from sgl_dynts.config import PAPER_CONFIGS, DynTSConfig
from sgl_dynts.roofline import (
    BYTES_PER_VALUE,
    GPUS,
    NO_EXPERTS,
    SHAPES,
    Experts,
    Gpu,
    ModelShape,
)

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


MXFP4_BYTES, FP8_BYTES = (4 + 8 / 32) / 8, 1 + 4 / 128**2
"""Bytes of one weight: 4 bits and a scale of 8 for each 32; 8 bits and a float32 for each 128 x 128."""
SHIPPED = {
    None: (BYTES_PER_VALUE, BYTES_PER_VALUE),
    "mxfp4": (BYTES_PER_VALUE, MXFP4_BYTES),
    "fp8": (FP8_BYTES, FP8_BYTES),
}
"""Bytes of one weight in layers and of one in experts, by ``quant_method`` of a config.json."""
STATES_WITH_PREFIX_CACHE, STATES_ALONE = 5, 1
"""Recurrent states for which SGLang lets one request run. With its prefix cache (``extra_buffer``, steps
overlap): the request's own, two to keep for the tree, and two that are left to the tree (see
``_calculate_mamba_ratio`` in ``kv_cache_configurator.py``). With ``--disable-radix-cache``: its own."""
STATE_BYTES = 4
"""float32, SGLang's default for states; what the convolution keeps is bfloat16."""


def shape_of(name: str, config: dict[str, Any], tp_size: int = 1) -> ModelShape:
    """Build the roofline's numbers of a model from its config.json.

    Args:
        name: to call it by.
        config: contents of config.json, or the ``text_config`` in it.
        tp_size: GPUs that share it.

    Raises:
        ValueError: it is another kind of model, or its weights are packed in another way.
    """
    config = config.get("text_config", config)
    kind = config.get("model_type")
    if kind not in COUNTED:
        raise ValueError(
            f"model_type {kind!r} of {name}: weights are counted for {', '.join(COUNTED)}; "
            f"name one of the shapes {', '.join(sorted(SHAPES | FAMILIES))} with --shape"
        )
    value_bytes, expert_bytes = _value_bytes(name, config)
    weights = count_weights(config)
    kinds = config.get("layer_types") or []
    sliding = kinds.count("sliding_attention")
    return ModelShape(
        name=name,
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=kv_heads_of(config),
        head_dim=head_dim_of(config),
        hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
        num_parameters=weights.num_parameters,
        value_bytes=value_bytes,
        experts=_experts(config, weights.expert_parameters, expert_bytes),
        sliding_layers=sliding,
        sliding_window=config["sliding_window"] if sliding else 0,
        recurrent_layers=recurrent_layers_of(config),
        state_bytes=_state_bytes(config),
        num_states=STATES_WITH_PREFIX_CACHE if recurrent_layers_of(config) else 1,
        latent_widths=_latent_widths(config),
        tp_size=tp_size,
    )


def _value_bytes(name: str, config: dict[str, Any]) -> tuple[float, float]:
    method = config.get("quantization_config", {}).get("quant_method")
    if method not in SHIPPED:
        known = ", ".join(filter(None, SHIPPED))
        raise ValueError(f"quant_method {method!r} of {name}: bytes of a weight are known for {known}")
    return SHIPPED[method]


def _experts(config: dict[str, Any], num_parameters: int, value_bytes: float) -> Experts:
    if not num_parameters:
        return NO_EXPERTS
    names = ("num_local_experts", "n_routed_experts", "num_experts")
    (num,) = (config[name] for name in names if name in config)
    return Experts(num, config["num_experts_per_tok"], num_parameters, value_bytes)


def _state_bytes(config: dict[str, Any]) -> int:
    """Bytes of one state: a key by value matrix per head, and the last inputs of the convolution."""
    layers = recurrent_layers_of(config)
    if not layers:
        return 0
    keys, values = config["linear_key_head_dim"], config["linear_value_head_dim"]
    matrices = STATE_BYTES * config["linear_num_value_heads"] * keys * values
    kept = BYTES_PER_VALUE * convolved_width(config) * (config["linear_conv_kernel_dim"] - 1)
    return layers * (matrices + kept)


def _latent_widths(config: dict[str, Any]) -> tuple[int, int] | None:
    if "kv_lora_rank" not in config:
        return None
    return config["kv_lora_rank"] + config["qk_rope_head_dim"], config["kv_lora_rank"]


def read_shape(path: Path) -> ModelShape:
    """Build the roofline's numbers of a model's folder or config.json."""
    path = path / "config.json" if path.is_dir() else path
    return shape_of(path.parent.name or path.name, json.loads(path.read_text()))


def roofline_shape(name: str) -> ModelShape:
    """Return a named shape's numbers: a dense one's, a family's, or those of the tiny one."""
    if name in FAMILIES:
        return shape_of(name, FAMILIES[name].config, FAMILIES[name].tp_size)
    return SHAPES[name] if name in SHAPES else shape_of(name, CONFIGS[name])


def gpu_named(device: str) -> Gpu | None:
    """Return the roofline's GPU of a device's name as CUDA tells it, None for one it does not know."""
    name = DEVICES.get(device)
    return None if name is None else GPUS[name]
