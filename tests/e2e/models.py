"""Tiny random models for token-exact tests, each with a random predictor beside it."""

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from benchmark.harness import tiny_models
from benchmark.harness.tiny_models import (
    END_THINK,
    FIRST_WORD,
    SIZES,
    SPECIAL,
    THINK,
    config_of,
    random_predictor,
    word_tokenizer,
    wrap_tokenizer,
    write_random_weights,
)
from sgl_dynts.checkpoint import PREDICTOR_FILE
from sgl_dynts.config import DynTSConfig

VOCAB_SIZE, HIDDEN_SIZE = SIZES["vocab_size"], SIZES["hidden_size"]
SEPARATORS = {250: ".", 251: ",", 252: "?", 253: "!", 254: ";", 255: ":"}
EXPERTS = {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
CHANGES_ITS_MIND = "changes_its_mind"
"""A model that closes and opens its thinking now and then."""
SPELLER = "speller"
"""A model whose tokens are bytes, so that it can spell anything; it closes its thinking now and then."""
UNTRAINED = "untrained"
"""A model that marks no thinking and has no predictor."""
WORDS_FILE = "words.txt"
"""In every model's folder: a text of its words."""

CONFIGS = {
    CHANGES_ITS_MIND: config_of("llama"),
    "llama": config_of("llama"),
    "qwen2": config_of("qwen2"),
    "qwen3": config_of("qwen3", head_dim=32),
    "qwen3_moe": config_of("qwen3_moe", **EXPERTS),
}


def build_model(kind: str, folder: Path) -> Path:
    """Write a random model of this kind, its tokenizer and its predictor; returns the folder."""
    if kind == SPELLER:
        config = config_of("llama", vocab_size=256 + len(SPECIAL))
        return write_model(config, 3, folder, (END_THINK,), _byte_tokenizer())
    if kind == UNTRAINED:
        unmarked = word_tokenizer(VOCAB_SIZE, special=SPECIAL[:THINK], words=SEPARATORS)
        write_model(config_of("llama"), 6, folder, tokenizer=unmarked)
        (folder / PREDICTOR_FILE).unlink()
        return folder
    often = (THINK, END_THINK) if kind == CHANGES_ITS_MIND else ()
    return write_model(CONFIGS[kind], sorted(CONFIGS).index(kind), folder, often)


def build_wide_model(folder: Path) -> Path:
    """Write a llama whose heads are as wide as the GPU kernels need: hidden size 256, 4 heads of 64."""
    return write_model(config_of("llama", hidden_size=256, head_dim=64, initializer_range=0.1), 0, folder)


def write_model(
    config: PreTrainedConfig,
    seed: int,
    folder: Path,
    often: tuple[int, ...] = (),
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Write a random model with tokenizer and predictor; ``often`` are markers that it generates."""
    write_random_weights(folder, config, seed, often)
    (tokenizer or word_tokenizer(VOCAB_SIZE, words=SEPARATORS)).save_pretrained(folder)
    write_predictor(folder / PREDICTOR_FILE, config.hidden_size)
    draw = random.Random(seed)
    words = (f"w{draw.randrange(FIRST_WORD, min(SEPARATORS))}" for _ in range(2500))
    (folder / WORDS_FILE).write_text(" ".join(words))
    return folder


def write_predictor(path: Path, hidden_size: int) -> None:
    predictor = random_predictor(hidden_size, (96, 32), std=0.3)
    tiny_models.write_predictor(path, predictor, DynTSConfig(96, 16, 0.4))


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = wrap_tokenizer(tokenizer)
    wrapped.chat_template = "{{ bos_token }}{{ messages[-1].content }}<think>"
    return wrapped
