"""The authors' checkpoints as predictor files, and back; tensors keep their dtype and bits.

The authors' layout has no header: it is lost on the way there, and on the way back the paper's windows
stand in it unless others are given.
"""

from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from sgl_dynts.checkpoint import (
    AUTHOR_LAYER_NAMES,
    PredictorHeader,
    find_predictor,
    load_predictor,
    save_predictor,
)
from sgl_dynts.config import Windows

AS_IN_CHECKPOINT = Windows()


def from_authors(
    checkpoint: Path, output: Path, windows: Windows = AS_IN_CHECKPOINT, **names: str
) -> PredictorHeader:
    """Write the predictor in `checkpoint`, a file or a model's folder, as a predictor file.

    Args:
        checkpoint: holds ``is_head.*``, sharded or not; a predictor file is taken too.
        output: file to write.
        windows: for the header; those of `checkpoint` where nothing is given.
        names: ``base_model`` and ``target`` of the header, where they are to differ from `checkpoint`'s.

    Raises:
        ValueError: no usable predictor in `checkpoint`, or windows that cannot be.
    """
    source = find_predictor(checkpoint, named=checkpoint)
    windows = windows.over(source.header.windows).complete()
    header = replace(source.header, windows=windows, **names)
    save_predictor(output, load_predictor(source), header)
    return header


def to_authors(predictor_file: Path, output: Path) -> None:
    """Write a predictor under the authors' names, ``is_head.{0,2,4}.weight``.

    Raises:
        ValueError: no usable predictor in `predictor_file`.
    """
    predictor = load_predictor(find_predictor(predictor_file, named=predictor_file))
    weights = zip(AUTHOR_LAYER_NAMES, predictor.parameters(), strict=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.detach() for name, weight in weights}, output, metadata={"format": "pt"})
