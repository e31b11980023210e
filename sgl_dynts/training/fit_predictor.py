"""Train an importance predictor for a model on its own traces, or on texts, and write its file.

    python -m sgl_dynts.training.fit_predictor MODEL traces.jsonl MODEL/dynts/predictor.safetensors
    python -m sgl_dynts.training.fit_predictor MODEL MODEL/dynts/predictor.safetensors --texts FOLDER

States and targets are computed once and kept in the --work folder, and each epoch is written there: the
same command goes on where an interrupted one ended. A share of the questions, or of the texts, is held
out of the fit; on these the predictor is compared with the policy `calibrated`, which needs none.
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
from sgl_dynts.training.interruption import INTERRUPTED, interruptible
from sgl_dynts.training.recipe import LOSS_NAMES, SCALE_NAMES, FitRecipe
from sgl_dynts.training.targets import TARGET_KINDS
from sgl_dynts.window_flags import add_window_flags, windows_given


def main(arguments: list[str] | None = None) -> int:
    """Train one predictor and return the exit status."""
    args = _parse(arguments)
    try:
        with interruptible():
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
        texts=args.texts,
        text_len=args.text_len,
        question_len=args.question_len,
        per_text=args.per_text,
        target=args.target,
        distance=args.distance,
        held_out=args.held_out,
        recipe=_recipe(args),
        compared=args.compared,
        work=_work_folder(args),
        base_model=args.base_model,
        dtype=args.dtype and getattr(torch, args.dtype),
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        progress=False,
        tell=partial(print, flush=True),
    )
    trained.save(args.output)
    print(f"wrote {args.output}")
    comparison = trained.report.comparison
    if comparison is not None and comparison.is_worse:
        print(f"{args.output}: {comparison.verdict}", file=sys.stderr)


def _recipe(args: argparse.Namespace) -> FitRecipe | dict[str, Any]:
    """Return the fields that were given, the others the paper's if these are asked for."""
    values = {field.name: getattr(args, field.name) for field in fields(FitRecipe)}
    given = {name: value for name, value in values.items() if value is not None}
    return FitRecipe(**given) if args.paper_recipe else given


def _work_folder(args: argparse.Namespace) -> Path:
    return args.work or args.output.with_suffix(".work")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sgl_dynts.training.fit_predictor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", type=Path, help="folder of the model that wrote the traces and is to be served")
    add("traces", type=Path, nargs="?", help="JSON lines, see sgl_dynts/training/README.md")
    add("output", type=Path, help="predictor file to write")
    _add_texts(add)
    add("--work", type=Path, help="folder for states and progress; default: beside the output, .work")
    add("--target", choices=TARGET_KINDS, default="future", help="of texts: future or deletion")
    add("--distance", type=int, help="of future and deletion, tokens; default: the local window")
    add("--held-out", type=float, default=0.1, help="share of the questions or texts not fitted to")
    add_window_flags(parser, "the paper's", "for the header, recommended: ")
    add("--base-model", help="for the header; default: the model folder's name")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the model; default: its own")
    add("--device", type=usable_device, help="default: cuda where there is one, else cpu")
    add("--threads", type=int, default=1, help="of the CPU; more are slower for small models")
    add("--not-compared", dest="compared", action="store_false", help="with the policy calibrated")
    _add_recipe(parser.add_argument_group("recipe", RECIPE_HELP).add_argument)
    return parser.parse_args(arguments)


def _add_texts(add: Any) -> None:
    add("--texts", type=Path, nargs="+", help="plain texts in place of traces: files, folders of *.txt")
    add("--text-len", type=int, help="tokens of a window of a text; default: two budgets")
    add("--question-len", type=int, default=32, help="tokens that begin a window and are its question")
    add("--per-text", type=int, help="windows of a text at most; default: all")


RECIPE_HELP = (
    "What is not given suits the number of traces: a batch small enough for the paper's number of steps, "
    "the epoch kept that is best on what is held out, --scale log for the target deletion, else the "
    "paper's values."
)


def _add_recipe(add: Any) -> None:
    paper = FitRecipe()
    add("--paper-recipe", action="store_true", help="what is not given is the paper's")
    add("--loss", choices=LOSS_NAMES, help=f"paper: {paper.loss}")
    add("--scale", choices=SCALE_NAMES, help="of targets; Llama: times; not for listwise")
    add("--emphasis", type=float, help=f"of mse-emphasis; {paper.emphasis}")
    add("--seed", type=int, help=f"{paper.seed}")
    add("--epochs", type=int, help=f"paper: {paper.epochs}")
    add("--batch-size", type=int, help=f"traces for one optimizer step; paper: {paper.batch_size}")
    add(
        "--patience",
        type=int,
        help="of epochs that are no better; 0, the paper's: the last is kept",
    )
    add("--learning-rate", type=float, help=f"paper: {paper.learning_rate}")
    add("--betas", type=float, nargs=2, help="paper: {} {}".format(*paper.betas))
    add("--weight-decay", type=float, help=f"paper: {paper.weight_decay}")
    add("--warmup-share", type=float, help=f"paper: {paper.warmup_share}")
    add("--clip-norm", type=float, help=f"paper: {paper.clip_norm}")
    add("--widen", type=float, help=f"h1 as a multiple of the hidden size; {paper.widen}")
    add("--narrow", type=float, help=f"h2 as a multiple of the hidden size; {paper.narrow}")
    add(
        "--scale-inputs",
        action="store_const",
        const=True,
        help="fit the first weights to the size of the states",
    )


if __name__ == "__main__":
    sys.exit(main())
