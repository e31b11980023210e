"""A folder that SGLang loads as a model in no time: one narrow layer, no weights, a tokenizer."""

from pathlib import Path

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

VOCAB_SIZE = 32768
WORDS = range(FIRST_WORD, VOCAB_SIZE)
"""Token ids of questions and of generated text: never a marker."""
HIDDEN_SIZE = 16


def write_model(folder: Path, context_len: int) -> Path:
    """Write configuration, tokenizer and predictor; returns the folder."""
    config = config_of(
        "qwen2",
        architectures=["Qwen2ForCausalLM"],
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context_len,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    word_tokenizer(VOCAB_SIZE).save_pretrained(folder)
    torch.manual_seed(0)
    write_predictor(folder / PREDICTOR_FILE, random_predictor(HIDDEN_SIZE, (8, 8)), PAPER_CONFIG)
    return folder
