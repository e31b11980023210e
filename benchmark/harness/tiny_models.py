"""The one maker of tiny models: sizes, weights, a tokenizer with one word per id, a random predictor."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from sgl_dynts.checkpoint import PredictorHeader, save_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.predictor import ImportancePredictor

SPECIAL = ("<unk>", "<bos>", "<eos>", "<think>", "</think>")
UNKNOWN, BOS, EOS, THINK, END_THINK = range(len(SPECIAL))
FIRST_WORD = 8
"""Ids from here on are words; a model of :func:`write_random_weights` generates no other of itself."""
SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}


def config_of(family: str, **sizes: Any) -> PreTrainedConfig:
    """Return a configuration of a model type of transformers; ``sizes`` go before :data:`SIZES`."""
    return AutoConfig.for_model(family, **(SIZES | sizes))


def word_tokenizer(
    vocab_size: int, special: Sequence[str] = SPECIAL, words: Mapping[int, str] | None = None
) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose every id is one word.

    Args:
        vocab_size: number of ids.
        special: the first of them: unknown, begin and end, then markers, if any.
        words: by id, those not to be called ``w`` and the id.
    """
    named = {i: f"w{i}" for i in range(vocab_size)} | dict(words or {}) | dict(enumerate(special))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in named.items()}, unk_token=special[UNKNOWN]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return wrap_tokenizer(tokenizer, special)


def wrap_tokenizer(tokenizer: Tokenizer, special: Sequence[str] = SPECIAL) -> PreTrainedTokenizerFast:
    """Make transformers' tokenizer of one whose first ids are special; each marker stays one token."""
    # Added tokens, since transformers reads a Qwen2 folder with its own class, which keeps only these.
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in special[THINK:]])
    unknown, begin, end = special[:THINK]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, bos_token=begin, eos_token=end
    )


def random_predictor(
    hidden_size: int, inner_sizes: Sequence[int] | None = None, std: float | None = None
) -> ImportancePredictor:
    """Return an untrained predictor, float32.

    Args:
        hidden_size: d.
        inner_sizes: h1 and h2; default: the paper's, 2d and d/2.
        std: of its weights; default: torch's own initial weights.
    """
    predictor = ImportancePredictor(hidden_size, inner_sizes or (2 * hidden_size, hidden_size // 2))
    if std is not None:
        for weight in predictor.parameters():
            torch.nn.init.normal_(weight, std=std)
    return predictor


def write_predictor(
    path: Path, predictor: ImportancePredictor, windows: DynTSConfig, base_model: str = "random"
) -> None:
    """Write a random predictor with a header that says so and recommends these windows."""
    header = PredictorHeader(predictor.hidden_size, base_model, "random", windows)
    save_predictor(path, predictor, header)


def write_random_weights(
    folder: Path, config: PreTrainedConfig, seed: int, often: Sequence[int] = ()
) -> None:
    """Write configuration and random float32 weights; ``often`` are special tokens that it generates."""
    sees = hasattr(config, "vision_config")
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    random_model(auto.from_config, config, seed, often).save_pretrained(folder)


def random_model(
    make: Callable[[Any], Any], config: PreTrainedConfig, seed: int, often: Sequence[int] = ()
) -> Any:
    """Return a model with random float32 weights; ``often`` are special tokens that it generates.

    Args:
        make: gives a model of transformers with this configuration.
        config: of the model.
        seed: of its weights.
        often: ids of markers.
    """
    torch.manual_seed(seed)
    model = make(config).float()
    with torch.no_grad():
        if config.tie_word_embeddings:
            model.lm_head.weight *= 0.1  # else it says again and again what it reads
        model.lm_head.weight[:FIRST_WORD] = 0  # a random model never closes its thinking by chance
        if often:
            model.lm_head.weight[list(often)] = torch.randn(len(often), model.lm_head.in_features) * 0.3
        for name, weight in model.named_parameters():
            if name.endswith(".sinks"):
                weight.copy_(weight.bfloat16())  # as which SGLang keeps them
    return model
