"""The demo model as a Hugging Face folder: written by training, read back by the evaluator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmark.ledgers.model import FAMILIES, DemoModel, ModelShape
from sgl_dynts.demo import ledger

WEIGHTS_FILE = "model.safetensors"
MINUTES_KEY = "training_minutes"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}{{ bos_token + ' ' + message.content + ' ' }}"
    "{%- elif message.role == 'assistant' -%}"
    "{{ '<think> ' + message.content + ' ' + eos_token + ' ' }}"
    "{%- else -%}{{ raise_exception('the ledger model knows the roles user and assistant only') }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<think>' }}{%- endif -%}"
)


def save_model_folder(folder: Path, model: DemoModel, training_minutes: float) -> None:
    """Write bfloat16 weights, configuration, tokenizer and chat template of `model`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    metadata = {"format": "pt", MINUTES_KEY: str(training_minutes)}
    save_file(weights, folder / WEIGHTS_FILE, metadata=metadata)
    _write_json(folder / "config.json", _config(model.shape))
    _write_json(folder / "generation_config.json", _generation_config())
    _write_json(folder / "tokenizer.json", _tokenizer(model.shape))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(model.shape))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n")


def read_training_minutes(folder: Path) -> float:
    """Return how long the model of a folder was trained, in minutes of wall-clock."""
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
        return float(weights.metadata()[MINUTES_KEY])


def load_model_folder(folder: Path, dtype: torch.dtype = torch.float32) -> DemoModel:
    """Return the model of a folder written by `save_model_folder`, to compute in `dtype`."""
    config = json.loads((folder / "config.json").read_text())
    model = DemoModel(_shape(config))
    model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return model.to(dtype).requires_grad_(False).eval()


def _config(shape: ModelShape) -> dict[str, object]:
    words = ledger.Vocabulary().ids
    return {
        "architectures": [FAMILIES[shape.family]],
        "model_type": shape.family,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": words[ledger.BOS],
        "eos_token_id": words[ledger.EOS],
        "pad_token_id": words[ledger.PAD],
        "dtype": "bfloat16",
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_positions,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }


def _shape(config: dict) -> ModelShape:
    return ModelShape(
        vocab_size=config["vocab_size"],
        family=config["model_type"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        rope_theta=config["rope_parameters"]["rope_theta"],
        norm_eps=config["rms_norm_eps"],
        max_positions=config["max_position_embeddings"],
    )


def _generation_config() -> dict[str, object]:
    words = ledger.Vocabulary().ids
    return {
        "bos_token_id": words[ledger.BOS],
        "eos_token_id": words[ledger.EOS],
        "pad_token_id": words[ledger.PAD],
        "do_sample": False,
    }


def _tokenizer(shape: ModelShape) -> dict[str, object]:
    """Whole words between spaces. The thinking markers are ordinary words, shown when decoded."""
    ids = {word: index for word, index in ledger.Vocabulary().ids.items() if index < shape.vocab_size}
    added = [_added_token(ids, word, special=True) for word in ledger.SPECIAL_WORDS]
    added += [_added_token(ids, word, special=False) for word in (ledger.THINK, ledger.END_THINK)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: cast(int, token["id"])),
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": ledger.UNKNOWN},
    }


def _added_token(ids: dict[str, int], word: str, *, special: bool) -> dict[str, object]:
    return {
        "id": ids[word],
        "content": word,
        "single_word": False,
        "lstrip": True,
        "rstrip": True,
        "normalized": False,
        "special": special,
    }


def _tokenizer_config(shape: ModelShape) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": ledger.BOS,
        "eos_token": ledger.EOS,
        "pad_token": ledger.PAD,
        "unk_token": ledger.UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.max_positions,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
