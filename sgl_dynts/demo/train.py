"""Make the shipped demo from nothing: model, predictor, figures and model card.

    python -m sgl_dynts.demo.train --output FOLDER

One CPU thread, well under an hour; seeds are fixed, progress goes to the terminal.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from sgl_dynts.checkpoint import PREDICTOR_FILE, PredictorHeader, save_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo import ledger
from sgl_dynts.demo.card import CARD_FILE, Figures, write_card
from sgl_dynts.demo.evaluate import (
    POLICIES,
    TABLE_HEAD,
    Evaluation,
    Report,
    format_report,
    held_out,
)
from sgl_dynts.demo.export import load_model_folder, read_training_minutes, save_model_folder
from sgl_dynts.demo.fit_importance import DEMO_RECIPE, DEMO_TARGET, train_predictor
from sgl_dynts.demo.fit_model import Progress, Recipe, train
from sgl_dynts.demo.ledger import Vocabulary
from sgl_dynts.demo.model import FAMILIES, DemoModel, ModelShape
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.collect import TARGET_KINDS, Target
from sgl_dynts.training.fit import FitRecipe

BASE_MODEL = "sgl-dynts-demo-ledger"
DEMO_CONFIG = DynTSConfig(budget=308, local_window=96, keep_ratio=0.9)
"""Half of the trace's 616 tokens; chosen on the validation split."""
NUM_PREDICTOR_PROBLEMS = 740
REPORT_EVERY = 25
SHIPPED = (ModelShape.family, Recipe.seed, DEMO_TARGET.kind)
"""Family, seed and target of what is in the package; others get no card."""


def main(arguments: list[str] | None = None) -> None:
    """Train, fit, measure on the test split, and write the folder."""
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    recipe = Recipe(seed=args.seed, total_steps=args.steps)
    importance_recipe = replace(DEMO_RECIPE, seed=args.seed)
    started = time.monotonic()
    if not args.keep_model:
        model = _train_model(recipe, args.family)
        save_model_folder(args.output, model, _minutes_since(started))
    fit_started = time.monotonic()
    # What is measured and read from here on is the rounded model that ships.
    target = DEMO_TARGET if args.target == DEMO_TARGET.kind else Target(args.target)
    predictor = _fit_predictor(args.output, importance_recipe, target)
    _save_predictor(args.output / PREDICTOR_FILE, predictor, target, args.family)
    predictor_minutes = _minutes_since(fit_started)
    reports = _measure(args, predictor)
    if (args.family, args.seed, args.target) == SHIPPED:
        minutes = read_training_minutes(args.output), predictor_minutes
        _write_card(args.output, recipe, minutes, reports)
    print(f"wrote {args.output} after {_minutes_since(started):.1f} minutes")


def _write_card(
    folder: Path,
    recipe: Recipe,
    minutes: tuple[float, float],
    reports: tuple[dict[str, Report], dict[str, Report]],
) -> None:
    """Describe what ships; the card's remarks on windows are about that model alone."""
    windows = (NUM_PREDICTOR_PROBLEMS, DEMO_CONFIG)
    write_card(folder / CARD_FILE, Figures(recipe, DEMO_RECIPE, *windows, *minutes, *reports))


def _train_model(recipe: Recipe, family: str) -> DemoModel:
    torch.manual_seed(recipe.seed)
    vocabulary = Vocabulary()
    model = DemoModel(ModelShape(len(vocabulary.words), family))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"model: {num_parameters} parameters, {recipe.total_steps} steps", flush=True)
    train(model, vocabulary, recipe, _print_progress)
    return model


def _print_progress(progress: Progress) -> None:
    if progress.step % REPORT_EVERY == 0:
        print(
            f"step {progress.step:5} stage {progress.stage} loss {progress.loss:7.4f} "
            f"lookups {progress.lookup_accuracy:.3f} tokens {progress.num_tokens} "
            f"{progress.seconds:.0f} s",
            flush=True,
        )


def _fit_predictor(folder: Path, recipe: FitRecipe, target: Target) -> ImportancePredictor:
    print(f"predictor: {NUM_PREDICTOR_PROBLEMS} training traces", flush=True)
    seeds = ledger.TRAIN_SEEDS[:NUM_PREDICTOR_PROBLEMS]
    return train_predictor(folder, [ledger.make_problem(seed) for seed in seeds], recipe, target)


def _save_predictor(path: Path, predictor: ImportancePredictor, target: Target, family: str) -> None:
    header = PredictorHeader(
        hidden_size=predictor.hidden_size,
        base_model=BASE_MODEL if family == SHIPPED[0] else f"{BASE_MODEL}-{family}",
        target=target.name,
        budget=DEMO_CONFIG.budget,
        local_window=DEMO_CONFIG.local_window,
        keep_ratio=DEMO_CONFIG.keep_ratio,
    )
    save_predictor(path, predictor, header)


def _measure(
    args: argparse.Namespace, predictor: ImportancePredictor
) -> tuple[dict[str, Report], dict[str, Report]]:
    """Return the reports on the test split in float32 and in bfloat16, by policy."""
    problems = held_out("test", args.num_problems, ledger.DEFAULT_STEPS)
    print(TABLE_HEAD)
    measured = []
    for dtype, policies in ((torch.float32, POLICIES), (torch.bfloat16, ("full", "dynts"))):
        model = load_model_folder(args.output, dtype)
        evaluation = Evaluation(model, problems, DEMO_CONFIG, predictor)
        reports = {name: evaluation.run(name) for name in policies}
        print("\n".join(map(format_report, reports.values())), flush=True)
        measured.append(reports)
    return measured[0], measured[1]


def _minutes_since(started: float) -> float:
    return (time.monotonic() - started) / 60


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sgl_dynts.demo.train", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--family", default=ModelShape.family, choices=FAMILIES, help="of the model")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of model and predictor")
    parser.add_argument(
        "--target", default=DEMO_TARGET.kind, choices=TARGET_KINDS, help="of the predictor"
    )
    parser.add_argument("--steps", type=int, default=Recipe.total_steps, help="optimizer steps")
    parser.add_argument(
        "--keep-model", action="store_true", help="fit and measure anew the model that is in FOLDER"
    )
    parser.add_argument("--num-problems", type=int, default=500, help="test problems per policy")
    parser.add_argument("--threads", type=int, default=1, help="more are slower on a shared CPU")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
