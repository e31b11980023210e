"""Train importance predictors: have a server write traces or texts, and fit a predictor to them.

from sgl_dynts.training import make_texts, make_traces, train
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgl_dynts.training.endpoint import Sampling
    from sgl_dynts.training.generation import make_traces
    from sgl_dynts.training.pipeline import train
    from sgl_dynts.training.recipe import FitRecipe
    from sgl_dynts.training.samples import make_texts
    from sgl_dynts.training.trace_file import read_traces

__all__ = ["FitRecipe", "Sampling", "make_texts", "make_traces", "read_traces", "train"]
MODULES = ("recipe", "endpoint", "samples", "generation", "trace_file", "pipeline")
"""Where each name of `__all__` is defined, in the same order."""


def __getattr__(name: str) -> Any:
    """Load what is asked for: torch and transformers come when a name needs them, not before."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[__all__.index(name)]}"), name)
