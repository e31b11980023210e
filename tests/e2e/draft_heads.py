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


def add_layer_that_drafts(folder: Path) -> None:
    """Add to a model of DeepSeek or GLM the layer behind its last, as in its own files."""
    weights, last, num_layers = _last_layer(folder)
    behind = f"model.layers.{num_layers}."
    head = {f"{behind}{name}": tensor for name, tensor in last.items()}
    norms = ("enorm", "hnorm", "shared_head.norm")
    head |= {f"{behind}{name}.weight": torch.ones(HIDDEN_SIZE) for name in norms}
    head |= {
        f"{behind}eh_proj.weight": _projection(2),
        f"{behind}embed_tokens.weight": weights["model.embed_tokens.weight"].clone(),
        f"{behind}shared_head.head.weight": weights["lm_head.weight"].clone(),
    }
    save_file(weights | head, folder / WEIGHTS)


def add_qwen_head(folder: Path) -> None:
    """Add to a Qwen3-Next the head of its own files: its last layer, which attends, and a projection."""
    weights, last, _ = _last_layer(folder)
    head = {f"mtp.layers.0.{name}": tensor for name, tensor in last.items()}
    norms = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    head |= {f"mtp.{name}.weight": torch.zeros(HIDDEN_SIZE) for name in norms}  # added to one
    save_file(weights | head | {"mtp.fc.weight": _projection(2)}, folder / WEIGHTS)


def _last_layer(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    """A model's weights, copies of those of its last layer by their names there, and how many it has."""
    weights = load_file(folder / WEIGHTS)
    num_layers = json.loads((folder / CONFIG).read_text())["num_hidden_layers"]
    prefix = f"model.layers.{num_layers - 1}."
    last = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return (
        weights,
        {name.removeprefix(prefix): tensor.clone() for name, tensor in last.items()},
        num_layers,
    )


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
