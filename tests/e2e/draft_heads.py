"""Random heads that draft for a model from its hidden states; they never learnt anything."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmark.harness.tiny_models import SIZES, config_of, word_tokenizer, write_random_weights

HIDDEN_SIZE, VOCAB_SIZE = SIZES["hidden_size"], SIZES["vocab_size"]
WEIGHTS, CONFIG = "model.safetensors", "config.json"
DRAFTED = 160
"""Words that the head of EAGLE3 knows; it drafts no others."""
CAPTURED = (0, 1, 2)
"""Layers of the model whose outputs the head of EAGLE3 reads."""


def write_eagle_head(folder: Path) -> Path:
    """Write a head of EAGLE for a llama: one layer, and a projection before it."""
    head = _one_layer(folder, seed=31)
    del head["layers.0.input_layernorm.weight"]
    head |= {"fc.weight": _projection(2), "fc.bias": torch.zeros(HIDDEN_SIZE)}
    return _write(folder, head, {"architectures": ["LlamaForCausalLMEagle"]})


def write_eagle3_head(folder: Path) -> Path:
    """Write a head of EAGLE3 for a llama: it reads three layers, and has a vocabulary of its own."""
    head = _one_layer(folder, seed=32)
    for name in ("q", "k", "v"):
        weight = f"layers.0.self_attn.{name}_proj.weight"
        head[weight] = torch.cat((head[weight], torch.randn_like(head[weight]) * 0.2), dim=1)
    head = {name.replace("layers.0", "midlayer"): tensor for name, tensor in head.items()}
    drafted = torch.randperm(VOCAB_SIZE)[:DRAFTED].sort().values
    head |= {
        "midlayer.hidden_norm.weight": torch.ones(HIDDEN_SIZE),
        "norm.weight": torch.ones(HIDDEN_SIZE),
        "fc.weight": _projection(len(CAPTURED)),
        "lm_head.weight": torch.randn(DRAFTED, HIDDEN_SIZE) * 0.2,
        "d2t": drafted - torch.arange(DRAFTED),
        "t2d": torch.isin(torch.arange(VOCAB_SIZE), drafted),
    }
    described = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": DRAFTED,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(CAPTURED)},
    }
    return _write(folder, head, described)


def add_multi_token_head(folder: Path) -> None:
    """Add to a model of DeepSeek or GLM the head that lies behind its last layer, as in its own files."""
    weights = load_file(folder / WEIGHTS)
    num_layers = json.loads((folder / CONFIG).read_text())["num_hidden_layers"]
    last, behind = (f"model.layers.{index}." for index in (num_layers - 1, num_layers))
    head = {
        name.replace(last, behind): tensor.clone()
        for name, tensor in weights.items()
        if name.startswith(last)
    }
    norms = ("enorm", "hnorm", "shared_head.norm")
    head |= {f"{behind}{name}.weight": torch.ones(HIDDEN_SIZE) for name in norms}
    head |= {
        f"{behind}eh_proj.weight": _projection(2),
        f"{behind}embed_tokens.weight": weights["model.embed_tokens.weight"].clone(),
        f"{behind}shared_head.head.weight": weights["lm_head.weight"].clone(),
    }
    save_file(weights | head, folder / WEIGHTS)


def _one_layer(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """Weights of a llama of one layer, by their names without the model's; writes its configuration."""
    write_random_weights(folder, config_of("llama", num_hidden_layers=1), seed)
    weights = load_file(folder / WEIGHTS)
    kept = {name: tensor for name, tensor in weights.items() if name.startswith("model.layers.0.")}
    return {name.removeprefix("model."): tensor for name, tensor in kept.items()}


def _projection(num: int) -> torch.Tensor:
    """From ``num`` vectors, one behind the other, to one of the hidden size."""
    return torch.randn(HIDDEN_SIZE, num * HIDDEN_SIZE) * 0.2


def _write(folder: Path, head: dict[str, torch.Tensor], described: dict[str, Any]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in head.items()}, folder / WEIGHTS)
    config = folder / CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | described))
    word_tokenizer(VOCAB_SIZE).save_pretrained(folder)
    return folder
