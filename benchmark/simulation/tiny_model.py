"""A folder that SGLang loads as a model in no time: one narrow layer, dummy weights, a tokenizer."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Config

from sgl_dynts.checkpoint import PREDICTOR_FILE, PredictorHeader, save_predictor
from sgl_dynts.config import PAPER_CONFIG
from sgl_dynts.predictor import ImportancePredictor

SPECIAL = ("<unk>", "<bos>", "<eos>", "<think>", "</think>")
UNKNOWN, BOS, EOS, THINK, END_THINK = range(len(SPECIAL))
VOCAB_SIZE = 32768
WORDS = range(8, VOCAB_SIZE)
"""Token ids of questions and of generated text: never a marker."""

HIDDEN_SIZE = 16


def write_model(folder: Path, context_len: int) -> Path:
    """Write configuration, tokenizer and predictor; returns the folder."""
    config = Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context_len,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    header = PredictorHeader(HIDDEN_SIZE, "dummy", "random", PAPER_CONFIG)
    save_predictor(folder / PREDICTOR_FILE, ImportancePredictor(HIDDEN_SIZE, (8, 8)), header)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), VOCAB_SIZE))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in SPECIAL[THINK:]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[UNKNOWN],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
    )
