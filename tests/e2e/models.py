"""Tiny random models for token-exact tests, each with a random predictor beside it."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from sgl_dynts.checkpoint import PREDICTOR_FILE, PredictorHeader, save_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.predictor import ImportancePredictor

VOCAB_SIZE = 256
HIDDEN_SIZE = 64
SPECIAL = ["<unk>", "<bos>", "<eos>", "<think>", "</think>"]
THINK, END_THINK = 3, 4
FIRST_WORD = 8
SEPARATORS = {250: ".", 251: ",", 252: "?", 253: "!", 254: ";", 255: ":"}

SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}
CHANGES_ITS_MIND = "changes_its_mind"
"""A model that closes and opens its thinking now and then."""

CONFIGS = {
    CHANGES_ITS_MIND: lambda: LlamaConfig(**SHAPE),
    "llama": lambda: LlamaConfig(**SHAPE),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=32),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SHAPE, **EXPERTS),
}


def build_model(kind: str, folder: Path) -> Path:
    """Write a random model of this kind, its tokenizer and its predictor; returns the folder."""
    often = (THINK, END_THINK) if kind == CHANGES_ITS_MIND else ()
    return write_model(CONFIGS[kind](), sorted(CONFIGS).index(kind), folder, often)


def write_speller(folder: Path, seed: int) -> Path:
    """Write a random llama whose tokens are bytes, so that it can spell anything, and that closes its
    thinking now and then.
    """
    shape: dict[str, Any] = SHAPE | {"vocab_size": 256 + len(SPECIAL)}
    return write_model(LlamaConfig(**shape), seed, folder, (END_THINK,), _byte_tokenizer())


def write_model(
    config: Any,
    seed: int,
    folder: Path,
    often: tuple[int, ...] = (),
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Write a random model with tokenizer and predictor; ``often`` are markers that it generates."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        model.lm_head.weight[:FIRST_WORD] = 0  # a random model never closes its thinking by chance
        if often:
            model.lm_head.weight[list(often)] = torch.randn(len(often), config.hidden_size) * 0.3
    model.save_pretrained(folder)
    (tokenizer or _word_tokenizer()).save_pretrained(folder)
    write_predictor(folder / PREDICTOR_FILE, config.hidden_size)
    return folder


def write_predictor(path: Path, hidden_size: int = HIDDEN_SIZE) -> None:
    predictor = ImportancePredictor(hidden_size, (96, 32))
    for weight in predictor.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    header = PredictorHeader(hidden_size, "random", "random", DynTSConfig(96, 16, 0.4))
    save_predictor(path, predictor, header)


def _word_tokenizer() -> PreTrainedTokenizerFast:
    words = SPECIAL + [SEPARATORS.get(i, f"w{i}") for i in range(len(SPECIAL), VOCAB_SIZE)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return _wrap(tokenizer)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    words = SPECIAL + sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = _wrap(tokenizer)
    wrapped.chat_template = "{{ bos_token }}{{ messages[-1].content }}<think>"
    return wrapped


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    # Added tokens, since transformers reads a Qwen2 folder with its own class, which keeps only these.
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )
