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
        shape: with sliding layers it is a model that SGLang gives two KV pools, one of a layer each.
    """
    config = config_of(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
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
    if not shape.sliding_layers:
        return {"family": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 1}
    return {
        "family": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": shape.sliding_window,
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    }
