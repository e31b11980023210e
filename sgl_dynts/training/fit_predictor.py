"""Train an importance predictor for a model on its own traces, and write the file that a server loads.

    python -m sgl_dynts.training.fit_predictor MODEL traces.jsonl MODEL/dynts/predictor.safetensors

States and targets are computed once and kept in the --work folder, and each epoch is written there: the
same command goes on where an interrupted one ended. A share of the questions is held out of the fit.
Beside the predictor go its epochs (.fit.json) and their picture (.fit.png).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from sgl_dynts.checkpoint import PredictorHeader, save_predictor
from sgl_dynts.config import PAPER_CONFIG, DynTSConfig
from sgl_dynts.training.collect import (
    TARGET_KINDS,
    Model,
    Target,
    collect,
    trace_key,
    usable_traces,
)
from sgl_dynts.training.device import usable_device
from sgl_dynts.training.fit import Epoch, FitRecipe, Split, fit_predictor
from sgl_dynts.training.losses import LOSSES, SCALES
from sgl_dynts.training.picture import draw_fit
from sgl_dynts.training.states import StateStore, write_whole
from sgl_dynts.training.trace_file import Trace

HEAD = (
    f"{'epoch':>5}{'loss':>11}{'held out':>11}{'tau':>8}{'top 20 %':>10}{'top 30 %':>10}"
    f"{'critical in 20 %':>18}{'in 30 %':>9}"
)
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Train one predictor and return the exit status."""
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    try:
        _train(args)
    except (ValueError, OSError) as error:
        print(f"not trained: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from {_work_folder(args)}", file=sys.stderr)
        return INTERRUPTED
    return 0


def split_by_question(traces: Sequence[Trace], share: float) -> Split:
    """Hold out the traces of a share of the questions, at least one, the same whatever the seed.

    Raises:
        ValueError: no question is left on one side.
    """
    questions = {trace_key(trace): _rank_of_question(trace) for trace in traces}
    ranks = sorted(set(questions.values()))
    held_out = set(ranks[: max(1, round(share * len(ranks)))])
    return Split(
        tuple(key for key, rank in questions.items() if rank not in held_out),
        tuple(key for key, rank in questions.items() if rank in held_out),
    )


def _train(args: argparse.Namespace) -> None:
    target = Target(args.target, _distance(args))
    recipe = FitRecipe(**{field.name: getattr(args, field.name) for field in fields(FitRecipe)})
    windows = DynTSConfig(args.budget, args.local_window, args.keep_ratio)
    model = Model.open(args.model, args.dtype and getattr(torch, args.dtype))
    traces, num_short = usable_traces(args.traces, model, target)
    split = split_by_question(traces, args.held_out)
    store = StateStore(_work_folder(args) / "states", model.settings(target))
    _fill(store, traces, model, target, args.device)
    if num_short:
        print(f"{num_short} traces are too short for the target {target.name} and are left out")
    print(
        f"{len(split.fitted)} traces to fit, {len(split.held_out)} held out, {recipe}\n{HEAD}", flush=True
    )
    predictor, history = fit_predictor(
        store, split, recipe, folder=_work_folder(args), device=args.device, report=print_epoch
    )
    header = PredictorHeader(
        predictor.hidden_size,
        args.base_model or args.model.resolve().name,
        target.name,
        windows.budget,
        windows.local_window,
        windows.keep_ratio,
    )
    save_predictor(args.output, predictor, header)
    _keep_history(args.output, recipe, split, header, history)
    print(f"wrote {args.output}")


def _fill(store: StateStore, traces: list[Trace], model: Model, target: Target, device: str) -> None:
    missing = [trace for trace in traces if trace_key(trace) not in store.places]
    if not missing:
        return
    # Closed whatever happens, so that what is computed is stored.
    with closing(collect(store, missing, model.load(device), target)) as computed:
        for number, _ in enumerate(computed, start=1):
            if number % 50 == 0 or number == len(missing):
                print(f"states of {number} of {len(missing)} traces", flush=True)


def _keep_history(
    output: Path, recipe: FitRecipe, split: Split, header: PredictorHeader, history: list[Epoch]
) -> None:
    kept = {
        "header": asdict(header),
        "recipe": asdict(recipe),
        "num_fitted": len(split.fitted),
        "num_held_out": len(split.held_out),
        "epochs": [asdict(epoch) for epoch in history],
    }
    write_whole(output.with_suffix(".fit.json"), json.dumps(kept, indent=1) + "\n")
    draw_fit(output.with_suffix(".fit.png"), history, f"{header.base_model}, target {header.target}")


def print_epoch(epoch: Epoch) -> None:
    """Print one row of the table that `HEAD` begins."""
    held_out = epoch.held_out
    recalls = [held_out.recall_20, held_out.recall_30]
    known = ["unknown" if recall is None else f"{recall:.3f}" for recall in recalls]
    print(
        f"{epoch.epoch:>5}{epoch.loss:>11.5g}{epoch.held_out_loss:>11.5g}{held_out.tau:>8.3f}"
        f"{held_out.overlap_20:>10.3f}{held_out.overlap_30:>10.3f}{known[0]:>18}{known[1]:>9}",
        flush=True,
    )


def _rank_of_question(trace: Trace) -> str:
    return hashlib.sha256(json.dumps(trace.prompt_ids).encode()).hexdigest()


def _distance(args: argparse.Namespace) -> int:
    if args.target != "future":
        return 0
    return args.local_window if args.distance is None else args.distance


def _work_folder(args: argparse.Namespace) -> Path:
    return args.work or args.output.with_suffix(".work")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sgl_dynts.training.fit_predictor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, recipe = parser.add_argument, FitRecipe()
    add("model", type=Path, help="folder of the model that wrote the traces and is to be served")
    add("traces", type=Path, help="JSON lines, see sgl_dynts/training/README.md")
    add("output", type=Path, help="predictor file to write")
    add("--work", type=Path, help="folder for states and progress; default: beside the output, .work")
    add("--target", choices=TARGET_KINDS, default="future")
    add("--distance", type=int, help="of the target future, tokens; default: the local window")
    add("--held-out", type=float, default=0.1, help="share of the questions not fitted to")
    add("--budget", type=int, default=PAPER_CONFIG.budget, help="for the header: recommended windows")
    add("--local-window", type=int, default=PAPER_CONFIG.local_window, help="for the header")
    add("--keep-ratio", type=float, default=PAPER_CONFIG.keep_ratio, help="for the header")
    add("--base-model", help="for the header; default: the model folder's name")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the model; default: its own")
    add("--device", type=usable_device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=1, help="of the CPU; more are slower for small models")
    _add_recipe(add, recipe)
    return parser.parse_args(arguments)


def _add_recipe(add: Any, recipe: FitRecipe) -> None:
    add("--loss", choices=LOSSES, default=recipe.loss)
    add(
        "--scale", choices=SCALES, default=recipe.scale, help="of targets; Llama: times; not for listwise"
    )
    add("--emphasis", type=float, default=recipe.emphasis, help="of mse-emphasis")
    add("--seed", type=int, default=recipe.seed)
    add("--epochs", type=int, default=recipe.epochs)
    add("--batch-size", type=int, default=recipe.batch_size, help="traces for one optimizer step")
    add("--learning-rate", type=float, default=recipe.learning_rate)
    add("--betas", type=float, nargs=2, default=recipe.betas)
    add("--weight-decay", type=float, default=recipe.weight_decay)
    add("--warmup-share", type=float, default=recipe.warmup_share)
    add("--clip-norm", type=float, default=recipe.clip_norm)
    add("--widen", type=float, default=recipe.widen, help="h1 as a multiple of the hidden size")
    add("--narrow", type=float, default=recipe.narrow, help="h2 as a multiple of the hidden size")
    add("--scale-inputs", action="store_true", help="fit the first weights to the size of the states")


if __name__ == "__main__":
    sys.exit(main())
