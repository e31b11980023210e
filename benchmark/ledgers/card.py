"""The model card of the demo, renewed with what training has just measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmark.harness.tables import card, renewed
from benchmark.ledgers.evaluate import SHIPPED_MODEL, Report
from benchmark.ledgers.fit_model import Recipe
from sgl_dynts.training.recipe import FitRecipe

CARD_FILE = "README.md"
OWN_STORY = "\n## How this copy was made"
"""Where the shipped card tells of that very copy, which no other has."""


@dataclass(frozen=True)
class Figures:
    """What a card tells anew: recipes, minutes, and reports by policy for each dtype."""

    recipe: Recipe
    fit_recipe: FitRecipe
    model_minutes: float
    predictor_minutes: float
    float32: Mapping[str, Report]
    bfloat16: Mapping[str, Report]


def write_card(path: Path, figures: Figures) -> None:
    """Write the shipped model's card to `path`, with these figures in place of its own.

    Raises:
        ValueError: the shipped card says none of its figures where it is looked for.
    """
    text = (SHIPPED_MODEL / CARD_FILE).read_text().partition(OWN_STORY)[0]
    recipe, fit = figures.recipe, figures.fit_recipe
    model = f"{recipe.total_steps} steps, seed {recipe.seed}, {figures.model_minutes:.0f} minutes on"
    predictor = f"{fit.epochs} epochs, seed {fit.seed},\n{figures.predictor_minutes:.0f} minutes. Default"
    said = {
        r"\d+ steps, seed \d+, \d+ minutes on": model,
        r"\d+ \w+, seed \d+,\n\d+ minutes\. Default": predictor,
        r"first \d+ problems": f"first {figures.float32['full'].n} problems",
    }
    for pattern, anew in said.items():
        text, found = re.subn(pattern, anew, text)
        if found != 1:
            raise ValueError(f"{pattern!r} is {found} times in the shipped card")
    measured = {"model-float32": figures.float32, "model-bfloat16": figures.bfloat16}
    tables = {name: card(map(asdict, reports.values())) for name, reports in measured.items()}
    path.write_text(renewed(text, {name: lambda lines=lines: lines for name, lines in tables.items()})[0])
