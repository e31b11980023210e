"""Models whose heads are as wide as the GPU kernels need: a random one, and the demo's."""

from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from benchmark.ledgers import evaluate
from tests.e2e.models import SHAPE

DEMO = Path(evaluate.__file__).parent / "model"


def wide_config() -> LlamaConfig:
    """Llama of two layers: hidden size 256, 4 heads of 64, 2 of them for K and V."""
    wide: dict[str, Any] = SHAPE | {"hidden_size": 256, "head_dim": 64, "initializer_range": 0.1}
    return LlamaConfig(**wide)
