"""Turn the authors' checkpoints into predictor files and back.

    python -m sgl_dynts.training.convert CHECKPOINT predictor.safetensors --base-model org/model
    python -m sgl_dynts.training.convert predictor.safetensors authors.safetensors --to-authors

Tensors keep their dtype and bits. The authors' layout has no header: it is lost on the way there, and
on the way back the paper's windows stand in it unless others are given.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sgl_dynts.loading import say_loading
from sgl_dynts.window_flags import add_window_flags, windows_given


def main(arguments: list[str] | None = None) -> int:
    """Convert one predictor and return the exit status."""
    args = _parse(arguments)
    say_loading("torch")
    from sgl_dynts.training.authors import from_authors, to_authors  # not above: --help need not wait

    try:
        if args.to_authors:
            to_authors(args.source, args.output)
        else:
            from_authors(args.source, args.output, windows_given(args), **_names(args))
    except ValueError as error:
        print(f"not converted: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.output}")
    return 0


def _names(args: argparse.Namespace) -> dict[str, str]:
    given = {"base_model": args.base_model, "target": args.target}
    return {name: value for name, value in given.items() if value is not None}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sgl_dynts.training.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="predictor file, checkpoint file or model folder")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--to-authors", action="store_true", help="write the authors' layout")
    parser.add_argument("--base-model", help="for the header; default: the source's name")
    parser.add_argument("--target", help="for the header: what the scores were trained on")
    add_window_flags(parser, "the source's, else the paper's", "for the header: ")
    args = parser.parse_args(arguments)
    for_header = _names(args) | windows_given(args).given()
    if args.to_authors and for_header:
        parser.error("--to-authors writes no header; leave out " + ", ".join(for_header))
    return args


if __name__ == "__main__":
    sys.exit(main())
