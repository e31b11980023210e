"""The ledger models that can be trained, the demo's and a large one, with all that goes with each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmark.ledgers.fit_importance import DEMO_RECIPE
from benchmark.ledgers.fit_model import Kind, Recipe, Stage
from benchmark.ledgers.model import ModelShape
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo import ledger
from sgl_dynts.training.recipe import FitRecipe


@dataclass(frozen=True)
class Size:
    """A model, its training and its predictor's.

    ``base_model`` names it in predictor files; ``num_steps`` are the entries of the ledgers that the
    predictor is fitted to, ``num_problems`` of them, and that `windows` are half of in tokens.
    """

    base_model: str
    shape: ModelShape
    recipe: Recipe
    fit: FitRecipe
    num_problems: int
    num_steps: int
    windows: DynTSConfig


DEMO = Size(
    base_model="sgl-dynts-demo-ledger",
    shape=ModelShape(len(ledger.vocabulary())),
    recipe=Recipe(),
    fit=DEMO_RECIPE,
    num_problems=740,
    num_steps=ledger.DEFAULT_STEPS,
    windows=DynTSConfig(budget=308, local_window=96, keep_ratio=0.9),  # chosen on the validation split
)
LARGE = Size(
    base_model="sgl-dynts-ledger-large",
    shape=ModelShape(
        len(ledger.wide_vocabulary()),
        hidden_size=768,
        intermediate_size=2048,
        num_layers=5,
        num_heads=12,
        num_kv_heads=6,
    ),
    recipe=Recipe(
        total_steps=1100,
        tokens_per_step=32768,
        learning_rate=1e-3,
        stages=(
            Stage((Kind(6, brief=True, wide=True),)),
            Stage((Kind(14, brief=True, wide=True),)),
            Stage((Kind(16, wide=True),)),
            Stage(
                (
                    *(Kind(steps, wide=True) for steps in (32, 32, 32, 24, 28)),
                    Kind(32, brief=True, wide=True),
                )
            ),
        ),
    ),
    fit=replace(DEMO_RECIPE, epochs=15, learning_rate=2e-3),
    num_problems=500,
    num_steps=ledger.MAX_WIDE_STEPS,
    windows=DynTSConfig(budget=704, local_window=160, keep_ratio=0.9),
)
"""33 million parameters, traces of 1,408 tokens; nothing of it is tuned."""
SIZES = {"demo": DEMO, "large": LARGE}
