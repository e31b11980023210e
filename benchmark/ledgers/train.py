"""Make the shipped demo from nothing: model, predictor, figures and model card.

    python -m benchmark.ledgers.train --output FOLDER
    python -m benchmark.ledgers.train --size large --device cuda --output FOLDER

The demo takes one CPU thread and well under an hour, the large model a GPU and minutes. Seeds are fixed,
progress goes to the terminal.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmark.harness.tables import card
from benchmark.ledgers.card import CARD_FILE, Figures, write_card
from benchmark.ledgers.evaluate import (
    POLICIES,
    Evaluation,
    Report,
    problems_of,
)
from benchmark.ledgers.export import load_model_folder, read_training_minutes, save_model_folder
from benchmark.ledgers.fit_importance import DEMO_TARGET, train_predictor
from benchmark.ledgers.fit_model import Progress, Recipe, train
from benchmark.ledgers.model import FAMILIES, DemoModel, ModelShape
from benchmark.ledgers.sizes import SIZES, Size
from sgl_dynts.checkpoint import PREDICTOR_FILE, PredictorHeader, save_predictor
from sgl_dynts.demo.ledger import Vocabulary
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.collect import Target
from sgl_dynts.training.device import usable_device
from sgl_dynts.training.pipeline import HEAD, epoch_row
from sgl_dynts.training.targets import TARGET_KINDS

REPORT_EVERY = 25
SHIPPED = ("demo", ModelShape.family, Recipe.seed, DEMO_TARGET.kind)
"""Size, family, seed and target of what is in the package; others get no card."""


def main(arguments: list[str] | None = None) -> None:
    """Train, fit, measure on the test split, and write the folder."""
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    size = _size_of(args)
    started = time.monotonic()
    if not args.keep_model:
        model = _train_model(size, args.device)
        save_model_folder(args.output, model, _minutes_since(started))
    fit_started = time.monotonic()
    # What is measured and read from here on is the rounded model that ships.
    target = DEMO_TARGET if args.target == DEMO_TARGET.kind else Target(args.target)
    predictor = _fit_predictor(args.output, size, target, args.device)
    _save_predictor(args.output / PREDICTOR_FILE, predictor, target, size)
    predictor_minutes = _minutes_since(fit_started)
    reports = _measure(args, size, predictor) if args.num_problems else None
    if reports and (args.size, args.family, args.seed, args.target) == SHIPPED:
        minutes = read_training_minutes(args.output), predictor_minutes
        write_card(args.output / CARD_FILE, Figures(size.recipe, size.fit, *minutes, *reports))
    print(f"wrote {args.output} after {_minutes_since(started):.1f} minutes")


def _size_of(args: argparse.Namespace) -> Size:
    """Return the size with the family, seed and steps that were asked for."""
    size = SIZES[args.size]
    return replace(
        size,
        base_model=size.base_model + ("" if args.family == ModelShape.family else f"-{args.family}"),
        shape=replace(size.shape, family=args.family),
        recipe=replace(size.recipe, seed=args.seed, total_steps=args.steps or size.recipe.total_steps),
        fit=replace(size.fit, seed=args.seed),
    )


def _train_model(size: Size, device: str) -> DemoModel:
    torch.manual_seed(size.recipe.seed)
    model = DemoModel(size.shape).to(device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"model: {num_parameters} parameters, {size.recipe.total_steps} steps", flush=True)
    train(model, Vocabulary(), size.recipe, _print_progress)
    return model


def _print_progress(progress: Progress) -> None:
    if progress.step % REPORT_EVERY == 0:
        print(
            f"step {progress.step:5} stage {progress.stage} loss {progress.loss:7.4f} "
            f"lookups {progress.lookup_accuracy:.3f} tokens {progress.num_tokens} "
            f"{progress.seconds:.0f} s",
            flush=True,
        )


def _fit_predictor(folder: Path, size: Size, target: Target, device: str) -> ImportancePredictor:
    print(f"predictor: {size.num_problems} training traces\n{HEAD}", flush=True)
    problems = problems_of("train", size.num_problems, size.num_steps)
    return train_predictor(
        folder, problems, size.fit, target, device, lambda epoch: print(epoch_row(epoch), flush=True)
    )


def _save_predictor(path: Path, predictor: ImportancePredictor, target: Target, size: Size) -> None:
    header = PredictorHeader(predictor.hidden_size, size.base_model, target.name, size.windows)
    save_predictor(path, predictor, header)


def _measure(
    args: argparse.Namespace, size: Size, predictor: ImportancePredictor
) -> tuple[dict[str, Report], dict[str, Report]]:
    """Return the reports on the test split in float32 and in bfloat16, by policy."""
    problems = problems_of("test", args.num_problems, size.num_steps)
    measured = []
    for dtype, policies in ((torch.float32, POLICIES), (torch.bfloat16, ("full", "dynts"))):
        model = load_model_folder(args.output, dtype).to(args.device)
        evaluation = Evaluation(model, problems, size.windows, predictor.to(args.device))
        reports = {name: evaluation.run(name) for name in policies}
        print(*card(map(asdict, reports.values())), sep="\n", flush=True)
        measured.append(reports)
    return measured[0], measured[1]


def _minutes_since(started: float) -> float:
    return (time.monotonic() - started) / 60


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmark.ledgers.train", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--size", default=SHIPPED[0], choices=SIZES, help="large is for a GPU")
    parser.add_argument("--family", default=ModelShape.family, choices=FAMILIES, help="of the model")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of model and predictor")
    parser.add_argument(
        "--target", default=DEMO_TARGET.kind, choices=TARGET_KINDS, help="of the predictor"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps; default: the size's")
    parser.add_argument(
        "--keep-model", action="store_true", help="fit and measure anew the model that is in FOLDER"
    )
    parser.add_argument("--num-problems", type=int, default=500, help="test problems per policy, 0: none")
    parser.add_argument("--device", type=usable_device, default="cpu", help="to compute on, such as cuda")
    parser.add_argument("--threads", type=int, default=1, help="more are slower on a shared CPU")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
