"""What the served model's queries are like, against Hugging Face's before it rotates them."""

import importlib
import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmark.harness.tiny_models import FIRST_WORD, config_of
from sgl_dynts.calibration import load_calibration
from sglang_dynts.forward.queries.calibrate import chunks
from tests.e2e.models import CONFIGS, VOCAB_SIZE, write_model
from tests.seam.calibrating import FLAGS

LONGEST = int(FLAGS[-1])
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "norms of queries": CONFIGS["qwen3"],
    "biases": CONFIGS["qwen2"],
    "scaled frequencies": config_of("llama", rope_parameters=SCALED),
}
pytestmark = pytest.mark.slow


@torch.inference_mode()
def queries(folder, text: list[int]) -> list[torch.Tensor]:
    """Of each layer [n, query_heads, d], every chunk read by itself."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    module: Any = importlib.import_module(type(model).__module__)
    original, seen = module.apply_rotary_pos_emb, []

    def rotate(query, key, *rest, **named):
        seen.append(query[0].transpose(0, 1).clone())
        return original(query, key, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "apply_rotary_pos_emb", rotate)
        for part in chunks(text, LONGEST):
            model(torch.tensor([part]))
    num_layers = model.config.num_hidden_layers
    return [torch.cat(seen[layer::num_layers]) for layer in range(num_layers)]


@pytest.mark.parametrize("kind", MODELS)
def test_the_statistics_are_those_of_the_queries_before_their_rotation(tmp_path, kind, warm):
    folder, path = write_model(MODELS[kind], 1, tmp_path / "model"), tmp_path / "calibration.safetensors"
    draw = random.Random(1)
    text = [draw.randrange(FIRST_WORD, VOCAB_SIZE) for _ in range(500)]
    words, log = ["-m", "tests.seam.calibrating", str(folder), str(path)], tmp_path / "log"
    process = warm.start([*words, *map(str, text)], log)
    assert process.wait(300) == 0, log.read_text()[-3000:]
    found = load_calibration(path)
    wanted = queries(folder, text)
    assert len(found.layers) == len(wanted)
    for statistics, layer in zip(found.layers, wanted, strict=True):
        torch.testing.assert_close(statistics.mean, layer.mean(0), rtol=1e-4, atol=1e-5)
        for head in range(layer.shape[1]):
            covariance = torch.cov(layer[:, head].T, correction=0)
            torch.testing.assert_close(statistics.covariance[head], covariance, rtol=1e-3, atol=1e-4)
        lengths = torch.complex(*layer.chunk(2, -1)).abs().mean(0)
        torch.testing.assert_close(statistics.modulus, lengths, rtol=1e-4, atol=1e-5)


def test_a_text_is_read_in_parts_that_fit():
    assert list(chunks(range(7), 3)) == [range(3), range(3, 6)]  # one token alone says nothing
    assert list(chunks(range(5), 3)) == [range(3), range(3, 5)]
    assert list(chunks([], 3)) == []
