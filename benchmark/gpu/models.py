"""A folder that SGLang serves with ``--load-format dummy``: sizes, a tokenizer and a random predictor."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from benchmark.gpu.shapes import CONFIGS, WINDOWS
from sgl_dynts.checkpoint import PREDICTOR_FILE, PredictorHeader, save_predictor
from sgl_dynts.predictor import ImportancePredictor

SPECIAL = ("<unk>", "<bos>", "<eos>")
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
    make_tokenizer(config["vocab_size"]).save_pretrained(folder / TOKENIZER_FOLDER)
    write_predictor(shape, folder / PREDICTOR_FILE)
    return folder


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose every id is one word."""
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), vocab_size))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    unknown, begin, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, bos_token=begin, eos_token=end
    )


def write_predictor(shape: str, path: Path) -> None:
    """Write a random predictor of the paper's sizes, d -> 2d -> d/2 -> 1, with the shape's windows."""
    hidden = CONFIGS[shape]["hidden_size"]
    torch.manual_seed(0)
    predictor = random_predictor(hidden).to(getattr(torch, CONFIGS[shape]["dtype"]))
    save_predictor(path, predictor, PredictorHeader(hidden, shape, "random", WINDOWS[shape]))


def random_predictor(hidden: int) -> ImportancePredictor:
    """Return an untrained predictor of the paper's sizes; torch's own initial weights, float32."""
    return ImportancePredictor(hidden, (2 * hidden, hidden // 2))
