"""A folder that SGLang loads as a model in no time: narrow layers, one of each kind, a tokenizer."""

from pathlib import Path
from typing import Any

import torch

from benchmark.harness.tiny_models import (
    FIRST_WORD,
    config_of,
    random_predictor,
    word_tokenizer,
    write_predictor,
)
from sgl_dynts.checkpoint import PREDICTOR_FILE
from sgl_dynts.config import PAPER_CONFIG
from sgl_dynts.roofline import ModelShape

VOCAB_SIZE = 32768
WORDS = range(FIRST_WORD, VOCAB_SIZE)
"""Token ids of questions and of generated text: never a marker."""
HIDDEN_SIZE = 16


def write_model(folder: Path, context_len: int, shape: ModelShape) -> Path:
    """Write configuration, tokenizer and predictor; returns the folder.

    Args:
        folder: to write into.
        context_len: most tokens of a request.
        shape: whose kinds of layers decide which pools SGLang gives the model; each is one layer here.
    """
    config = config_of(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=16,
        num_attention_heads=2,
        max_position_embeddings=context_len,
        tie_word_embeddings=True,
        dtype="bfloat16",
        **_layers(shape),
    )
    config.save_pretrained(folder)
    word_tokenizer(VOCAB_SIZE).save_pretrained(folder)
    torch.manual_seed(0)
    write_predictor(folder / PREDICTOR_FILE, random_predictor(HIDDEN_SIZE, (8, 8)), PAPER_CONFIG)
    return folder


def _layers(shape: ModelShape) -> dict[str, Any]:
    """Return the fields of a configuration that choose SGLang's pools."""
    if shape.sliding_layers:
        return SLIDING | {"sliding_window": shape.sliding_window}
    if shape.recurrent_layers:
        return RECURRENT
    return LATENT if shape.latent_widths is not None else FULL


FULL = {
    "family": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
}
SLIDING = {
    "family": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "layer_types": ["sliding_attention", "full_attention"],
    "head_dim": 8,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
}
LATENT = {
    "family": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "num_hidden_layers": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048}
    | {"rope_theta": 10000.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
}
RECURRENT = {
    "family": "qwen3_next",
    "architectures": ["Qwen3NextForCausalLM"],
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "layer_types": ["linear_attention", "full_attention"],
    "full_attention_interval": 2,
    "head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "decoder_sparse_step": 1,
}
"""Of each kind of pool a model as small as it can be."""
