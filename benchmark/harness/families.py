"""Models with other attention than full attention in every layer, by name: fields of their config.json.

Each ``source`` names the model on Hugging Face. Its own file could not be fetched. What the numbers were
compared with, field by field, is the pinned transformers:

- gpt-oss-120b: the defaults of ``GptOssConfig`` (``configuration_gpt_oss.py``). The same numbers are the
  defaults of ``ModelConfig`` in OpenAI's own ``gpt_oss/torch/model.py``. The 24 layers and 32 experts of
  gpt-oss-20b are those of a copy of its config.json on GitHub (EchoCog/gpt-oss-20b).
- deepseek-r1: ``DeepseekV3Config`` (``configuration_deepseek_v3.py``), whose defaults are DeepSeek-V3's;
  R1 has the same layers.
- qwen3-next-80b: ``Qwen3NextConfig`` (``configuration_qwen3_next.py``).
- qwen3.5-9b and -35b: ``Qwen3_5TextConfig`` and ``Qwen3_5MoeTextConfig`` (``configuration_qwen3_5.py``,
  ``configuration_qwen3_5_moe.py``), whose docstrings say that the defaults are those of these models.

Tests hold all of this but the copy. Not verified is ``quantization_config``: by it gpt-oss ships MXFP4
experts and DeepSeek-R1 FP8, as their publishers say. Fields that no size depends on are left out; of
Qwen3.5 it is ``text_config``.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """One published model: its name, fields of its config.json, on how many GPUs it is served."""

    source: str
    config: dict[str, Any]
    tp_size: int = 1


_GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "sliding_window": 128,
    "num_experts_per_tok": 4,
    "quantization_config": {"quant_method": "mxfp4"},
}

_DEEPSEEK = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129280,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "quantization_config": {"quant_method": "fp8"},
}

_DELTA_RULE = {
    "full_attention_interval": 4,
    "num_attention_heads": 16,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}


def _layers(num: int) -> dict[str, Any]:
    """Alternating layers, as gpt-oss has them."""
    return {
        "num_hidden_layers": num,
        "layer_types": ["sliding_attention", "full_attention"] * (num // 2),
    }


FAMILIES = {
    "gpt-oss-20b": Family("openai/gpt-oss-20b", _GPT_OSS | _layers(24) | {"num_local_experts": 32}),
    "gpt-oss-120b": Family("openai/gpt-oss-120b", _GPT_OSS | _layers(36) | {"num_local_experts": 128}),
    "deepseek-r1": Family("deepseek-ai/DeepSeek-R1", _DEEPSEEK, tp_size=8),
    "qwen3-next-80b": Family(
        "Qwen/Qwen3-Next-80B-A3B-Thinking",
        _DELTA_RULE
        | {
            "model_type": "qwen3_next",
            "num_hidden_layers": 48,
            "hidden_size": 2048,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
        },
        tp_size=2,
    ),
    "qwen3.5-9b": Family(
        "Qwen/Qwen3.5-9B",
        _DELTA_RULE
        | {
            "model_type": "qwen3_5_text",
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_key_value_heads": 4,
            "vocab_size": 248320,
        },
    ),
    "qwen3.5-35b": Family(
        "Qwen/Qwen3.5-35B-A3B",
        _DELTA_RULE
        | {
            "model_type": "qwen3_5_moe_text",
            "num_hidden_layers": 40,
            "hidden_size": 2048,
            "num_key_value_heads": 2,
            "vocab_size": 248320,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
        },
    ),
}
"""By the names that the roofline's commands take: weights as shipped, on so many H200 as hold them."""
