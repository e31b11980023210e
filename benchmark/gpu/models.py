"""A folder that SGLang serves with ``--load-format dummy``: sizes, a tokenizer and a random predictor."""

import json
from pathlib import Path

import torch

from benchmark.harness.shapes import CONFIGS, WINDOWS
from benchmark.harness.tiny_models import (
    SPECIAL,
    THINK,
    random_predictor,
    word_tokenizer,
    write_predictor,
)
from sgl_dynts.checkpoint import PREDICTOR_FILE

FIRST_WORD = 16
"""Ids below are special tokens and the words of the markers."""
THINK_START = "w10 w8 w6 w4"
THINK_END = "w11 w9 w7 w5"
"""Falling ids, so that no prompt of rising ones holds a marker, and four, so that chance makes none."""
TOKENIZER_FOLDER = "tokenizer"
"""Beside no config.json: transformers would read a Qwen2 folder with a class that drops the words."""


def write_model(shape: str, folder: Path) -> Path:
    """Write configuration, tokenizer and predictor of a shape.

    Args:
        shape: a key of ``CONFIGS``.
        folder: made if need be; no weights are written, they are drawn when it is served.

    Returns:
        The folder.
    """
    config = CONFIGS[shape]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    word_tokenizer(config["vocab_size"], SPECIAL[:THINK]).save_pretrained(folder / TOKENIZER_FOLDER)
    torch.manual_seed(0)
    predictor = random_predictor(config["hidden_size"]).to(getattr(torch, config["dtype"]))
    write_predictor(folder / PREDICTOR_FILE, predictor, WINDOWS[shape], base_model=shape)
    return folder
