"""LoRA adapters: adapted and plain requests in one batch, each compacted by its own hidden states."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.e2e.conftest import prompt
from tests.e2e.hf_reference import Reference, Windows
from tests.e2e.models import HIDDEN_SIZE

pytestmark = pytest.mark.gpu  # SGLang 0.5.23 loads adapters through CUDA alone

DEFAULT = Windows(96, 16, 0.4)
RANK = 4
LAYERS = ("model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj")


@dataclass
class Adapter:
    folder: Path
    merged: Path


@pytest.fixture(scope="module")
def adapter(model_of, tmp_path_factory) -> Adapter:
    """An adapter of the llama model, and the same model with the adapter added to its weights."""
    root = tmp_path_factory.mktemp("lora")
    torch.manual_seed(5)
    pairs = {
        name: (torch.randn(RANK, HIDDEN_SIZE) * 0.2, torch.randn(HIDDEN_SIZE, RANK) * 0.2)
        for name in LAYERS
    }
    return Adapter(_write_adapter(root / "adapter", pairs), _merge(model_of("llama"), root, pairs))


def _write_adapter(folder: Path, pairs: dict) -> Path:
    folder.mkdir()
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["o_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _merge(model: Path, root: Path, pairs: dict) -> Path:
    plain = Reference(model).model
    with torch.no_grad():
        for name, (a, b) in pairs.items():
            plain.get_submodule(name).weight += b @ a
    plain.save_pretrained(root / "merged")
    shutil.copytree(model / "dynts", root / "merged" / "dynts")
    return root / "merged"


@pytest.fixture(scope="module")
def server(model_of, adapter, start):
    server = start(
        model_of("llama"),
        *("--attention-backend", "dynts", "--enable-lora"),
        *("--lora-paths", f"shifted={adapter.folder}", "--max-lora-rank", str(RANK)),
        *("--lora-target-modules", "o_proj"),
    )
    yield server
    server.assert_nothing_leaked()


def test_adapted_and_plain_requests_equal_their_references(server, adapter, reference_of):
    references = (reference_of("llama"), Reference(adapter.merged))
    jobs = [
        {"prompt": prompt(20 + i, 40 + i), "length": 200, "lora_path": (None, "shifted")[i % 2]}
        for i in range(6)
    ]
    outputs = []
    for i, (job, reply) in enumerate(zip(jobs, server.generate_all(jobs), strict=True)):
        expected = references[i % 2].generate(job["prompt"], 200, DEFAULT)
        assert expected.num_compactions >= 2
        assert reply["output_ids"] == expected.tokens
        outputs.append(reply["output_ids"])
    plain = references[0].generate(jobs[1]["prompt"], 200, DEFAULT).tokens
    assert outputs[1] != plain
