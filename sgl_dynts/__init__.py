"""Dynamic Thinking-Token Selection (DynTS): the method, free of any serving engine.

A reasoning model thinks for thousands of tokens and about a fifth of them decide the answer. A small
predictor scores every token; a request keeps its question, the best-scored thinking tokens and its
newest tokens, and gives the KV memory of the rest back.
"""

from pathlib import Path

from sgl_dynts.config import PAPER_CONFIG, DynTSConfig

__version__ = "0.1.0"
__all__ = ["PAPER_CONFIG", "DynTSConfig", "__version__", "demo_model_path"]


def demo_model_path() -> Path:
    """Return the folder of the demo model: Hugging Face format, its predictor beside it."""
    return Path(__file__).parent / "demo" / "model"
