"""Train an importance predictor for a model on its own traces, and write the file that a server loads.

    python -m sgl_dynts.training.fit_predictor MODEL traces.jsonl MODEL/dynts/predictor.safetensors

States and targets are computed once and kept in the --work folder, and each epoch is written there: the
same command goes on where an interrupted one ended. A share of the questions is held out of the fit.
Beside the predictor go its epochs (.fit.json) and their picture (.fit.png).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from sgl_dynts.loading import say_loading
from sgl_dynts.training.device import usable_device
from sgl_dynts.training.recipe import LOSS_NAMES, SCALE_NAMES, FitRecipe
from sgl_dynts.training.targets import TARGET_KINDS
from sgl_dynts.window_flags import add_window_flags, windows_given

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Train one predictor and return the exit status."""
    args = _parse(arguments)
    try:
        _train(args)
    except (ValueError, OSError) as error:
        print(f"not trained: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from {_work_folder(args)}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _train(args: argparse.Namespace) -> None:
    say_loading("torch", "transformers")
    import torch  # not above: --help need not wait

    from sgl_dynts.training.pipeline import train

    torch.set_num_threads(args.threads)
    trained = train(
        args.model,
        args.traces,
        windows_given(args),
        target=args.target,
        distance=args.distance,
        held_out=args.held_out,
        recipe=FitRecipe(**{field.name: getattr(args, field.name) for field in fields(FitRecipe)}),
        work=_work_folder(args),
        base_model=args.base_model,
        dtype=args.dtype and getattr(torch, args.dtype),
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        progress=False,
        tell=partial(print, flush=True),
    )
    trained.save(args.output)
    print(f"wrote {args.output}")


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
    add("--distance", type=int, help="of future and deletion, tokens; default: the local window")
    add("--held-out", type=float, default=0.1, help="share of the questions not fitted to")
    add_window_flags(parser, "the paper's", "for the header, recommended: ")
    add("--base-model", help="for the header; default: the model folder's name")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the model; default: its own")
    add("--device", type=usable_device, help="default: cuda where there is one, else cpu")
    add("--threads", type=int, default=1, help="of the CPU; more are slower for small models")
    _add_recipe(add, recipe)
    return parser.parse_args(arguments)


def _add_recipe(add: Any, recipe: FitRecipe) -> None:
    add("--loss", choices=LOSS_NAMES, default=recipe.loss)
    add(
        "--scale",
        choices=SCALE_NAMES,
        default=recipe.scale,
        help="of targets; Llama: times; not for listwise",
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
