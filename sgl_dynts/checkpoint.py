"""Predictor files: one safetensors format with a header, and the authors' own checkpoints.

A predictor file holds ``layers.{0,1,2}.weight`` and, in the safetensors metadata, what
:meth:`PredictorHeader.flat` gives. The authors keep theirs as ``is_head.{0,2,4}.weight`` among the
tensors of the fine-tuned model. Files are data: only safetensors is read, sizes are checked on the
header before a tensor is loaded.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sgl_dynts.config import PAPER_CONFIG, WINDOW_FIELDS, DynTSConfig
from sgl_dynts.predictor import ImportancePredictor

FORMAT_VERSION = "1"
OWN_FIELDS = ("hidden_size", "base_model", "target")
"""Of a header, beside its windows."""
PREDICTOR_FILE = "dynts/predictor.safetensors"
"""Inside a model's folder; a subfolder, since engines load every safetensors file beside the weights."""
LAYER_NAMES = tuple(f"layers.{i}.weight" for i in range(3))
AUTHOR_LAYER_NAMES = tuple(f"is_head.{i}.weight" for i in (0, 2, 4))
MAX_INNER_SIZE = 1 << 17
FLOAT_DTYPES = {torch.float32, torch.float16, torch.bfloat16}


@dataclass(frozen=True)
class PredictorHeader:
    """What a predictor was made for.

    ``target`` names what its scores were trained on; ``windows`` are those its makers recommend, the
    server's defaults.
    """

    hidden_size: int
    base_model: str
    target: str
    windows: DynTSConfig

    def flat(self) -> dict[str, Any]:
        """Return the fields by name, as a file and a server tell them: the windows' three among them."""
        return {name: getattr(self, name) for name in OWN_FIELDS} | self.windows.given()


@dataclass(frozen=True)
class PredictorSource:
    """Where a predictor was found: its file for each tensor, and its header."""

    path: Path
    tensor_files: tuple[Path, ...]
    tensor_names: tuple[str, ...]
    header: PredictorHeader


def save_predictor(path: Path, predictor: ImportancePredictor, header: PredictorHeader) -> None:
    """Write a predictor file.

    Raises:
        ValueError: the header's hidden size is not the predictor's.
    """
    if header.hidden_size != predictor.hidden_size:
        raise ValueError(
            f"header says hidden_size={header.hidden_size}, the predictor has {predictor.hidden_size}"
        )
    metadata = {"format_version": FORMAT_VERSION}
    metadata |= {field: str(value) for field, value in header.flat().items()}
    tensors = {
        name: weight.detach().contiguous()
        for name, weight in zip(LAYER_NAMES, predictor.parameters(), strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)


def find_predictor(model_folder: Path, named: Path | None = None) -> PredictorSource:
    """Find the predictor of a model and read its header, loading no tensor.

    Looked for in this order: ``named`` (a file, or a folder that holds ``dynts/predictor.safetensors``
    or ``is_head.*`` tensors), that file in the model's folder, ``is_head.*`` in the model's own files.

    Raises:
        ValueError: nothing found, or what was found is not a usable predictor; says what to do.
    """
    source = find_predictor_if_any(model_folder, named)
    if source is None:
        raise ValueError(
            f"no predictor: --dynts-predictor is not given, {model_folder} holds no {PREDICTOR_FILE} "
            "and its checkpoint has no is_head.* tensors. Train one for this model, or name one with "
            "--dynts-predictor PATH"
        )
    return source


def find_predictor_if_any(model_folder: Path, named: Path | None = None) -> PredictorSource | None:
    """Find a predictor as :func:`find_predictor` does, None where none is named and none is found.

    Raises:
        ValueError: one was named or found and is not usable.
    """
    return _find_named(named) if named is not None else _find_in_folder(model_folder)


def load_predictor(source: PredictorSource | Path) -> ImportancePredictor:
    """Load a predictor on the CPU, in the dtype it was saved in.

    Raises:
        ValueError: a tensor is missing or has a shape that does not chain up.
    """
    if isinstance(source, Path):
        source = _read_predictor_file(source)
    shapes = [_tensor_shape(*pair) for pair in _file_and_name(source)]
    _check_shapes(source, shapes)
    weights = [read_tensor(*pair) for pair in _file_and_name(source)]
    _check_weights(source, weights)
    predictor = ImportancePredictor(shapes[0][1], [shapes[0][0], shapes[1][0]])
    predictor.to(weights[0].dtype)
    for parameter, weight in zip(predictor.parameters(), weights, strict=True):
        parameter.data.copy_(weight)
    return predictor.requires_grad_(False).eval()


def check_scores(
    predictor: ImportancePredictor, path: Path | str, scale: torch.Tensor | float = 1.0
) -> None:
    """Refuse a predictor that cannot tell tokens apart, by what it gives random hidden states.

    Args:
        predictor: as it is served, on its device and in its dtype.
        path: of its file, for the message.
        scale: [hidden_size] or one number, the size of the model's hidden states.

    Raises:
        ValueError: scores are not finite, or all the same.
    """
    weight = next(predictor.parameters())
    noise = torch.randn(64, predictor.hidden_size, generator=torch.Generator().manual_seed(0))
    scores = predictor((noise.to(weight.device) * scale).to(weight.dtype))
    if not bool(scores.isfinite().all()):
        raise ValueError(f"{path}: its scores are not finite numbers; train the predictor again")
    if bool(scores.max() == scores.min()):
        raise ValueError(
            f"{path}: every token scores {scores[0].item():g}, so nothing tells which to keep; train the "
            "predictor again"
        )


def digest(source: PredictorSource) -> str:
    """Return what tells a predictor from others, in hexadecimal.

    The sha256 of a predictor's file; of ``is_head.*``, which may stand among a whole model's tensors,
    the sha256 of the three tensors' bytes in order.
    """
    if source.tensor_names == LAYER_NAMES:
        with source.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return digest_of([read_tensor(*pair) for pair in _file_and_name(source)])


def digest_of(weights: Sequence[torch.Tensor]) -> str:
    """Return the sha256 of a predictor's weights, their bytes in order, in hexadecimal."""
    total = hashlib.sha256()
    for weight in weights:
        total.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _find_named(named: Path) -> PredictorSource:
    if named.is_file():
        return _read_predictor_file(named)
    if named.exists() and not named.is_dir():
        raise ValueError(f"--dynts-predictor {named}: it is no regular file; name a predictor file")
    if not named.is_dir():
        raise ValueError(
            f"--dynts-predictor {named}: no such file or folder; name a predictor file, or a folder "
            f"that holds {PREDICTOR_FILE}"
        )
    source = _find_in_folder(named)
    if source is None:
        raise ValueError(
            f"--dynts-predictor {named}: the folder holds neither {PREDICTOR_FILE} nor a checkpoint "
            "with is_head.* tensors; name the predictor file itself"
        )
    return source


def _find_in_folder(folder: Path) -> PredictorSource | None:
    path = folder / PREDICTOR_FILE
    if path.is_file():
        return _read_predictor_file(path)
    if os.path.lexists(path):  # a link to nowhere, or to itself, as well
        raise ValueError(
            f"{path}: it is there, and no regular file that can be read; put a predictor in its place, "
            "or take it away"
        )
    return _find_author_tensors(folder)


def _read_predictor_file(path: Path) -> PredictorSource:
    metadata, names = read_metadata(path)
    if set(AUTHOR_LAYER_NAMES) <= names:
        return _author_source(path, dict.fromkeys(AUTHOR_LAYER_NAMES, path))
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: predictor format_version is {version!r}, this release reads {FORMAT_VERSION!r}; "
            "save the predictor again with a matching release"
        )
    missing = [name for name in LAYER_NAMES if name not in names]
    if missing:
        raise ValueError(f"{path}: missing tensors {', '.join(missing)}; the file is not complete")
    header = _parse_header(path, metadata)
    return PredictorSource(path, (path,) * len(LAYER_NAMES), LAYER_NAMES, header)


def _parse_header(path: Path, metadata: dict[str, str]) -> PredictorHeader:
    missing = [name for name in (*OWN_FIELDS, *WINDOW_FIELDS) if name not in metadata]
    if missing:
        raise ValueError(f"{path}: header lacks {', '.join(missing)}; save the predictor again")
    size, base_model, target = (metadata[name] for name in OWN_FIELDS)
    budget, local_window, keep_ratio = (metadata[name] for name in WINDOW_FIELDS)
    try:
        windows = DynTSConfig(int(budget), int(local_window), float(keep_ratio))
        return PredictorHeader(int(size), base_model, target, windows)
    except ValueError as error:
        raise ValueError(f"{path}: bad header: {error}") from error


def _find_author_tensors(folder: Path) -> PredictorSource | None:
    """Look for ``is_head.*`` in a Hugging Face checkpoint, sharded or not."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_weight_map(index)
        files = {name: folder / weight_map[name] for name in AUTHOR_LAYER_NAMES if name in weight_map}
    else:
        files = {
            name: path
            for path in sorted(folder.glob("*.safetensors"))
            for name in read_metadata(path)[1] & set(AUTHOR_LAYER_NAMES)
        }
    return _author_source(folder, files) if files else None


def _read_weight_map(index: Path) -> dict[str, str]:
    """Read which file of the same folder holds which tensor; a path out of the folder is not followed.

    Raises:
        ValueError: the index is not of this form.
    """
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        files = dict(weight_map)
        strange = [file for file in files.values() if Path(file).name != file or file == ".."]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{index}: not an index of safetensors files ({error!r})") from error
    if strange:
        raise ValueError(
            f"{index}: {strange[0]!r} is not the name of a file beside it; correct the index"
        )
    return files


def _author_source(path: Path, files: dict[str, Path]) -> PredictorSource:
    missing = [name for name in AUTHOR_LAYER_NAMES if name not in files]
    if missing:
        raise ValueError(f"{path}: missing tensors {', '.join(missing)} beside the other is_head.*")
    first = files[AUTHOR_LAYER_NAMES[0]]
    shape = _tensor_shape(first, AUTHOR_LAYER_NAMES[0])
    if len(shape) != 2:
        raise ValueError(
            f"{path}: {AUTHOR_LAYER_NAMES[0]} has shape {shape}, a predictor's is [h1, hidden]"
        )
    header = PredictorHeader(shape[-1], path.name, "answer", PAPER_CONFIG)
    ordered = tuple(files[name] for name in AUTHOR_LAYER_NAMES)
    return PredictorSource(path, ordered, AUTHOR_LAYER_NAMES, header)


def _check_shapes(source: PredictorSource, shapes: list[list[int]]) -> None:
    if any(0 in shape for shape in shapes):
        raise ValueError(f"{source.path}: tensor shapes {shapes} have a width of 0, which scores nothing")
    chained = all(len(shape) == 2 for shape in shapes) and (
        shapes[0][1] == source.header.hidden_size
        and shapes[1][1] == shapes[0][0]
        and shapes[2] == [1, shapes[1][0]]
        and max(map(max, shapes)) <= MAX_INNER_SIZE
    )
    if not chained:
        raise ValueError(
            f"{source.path}: tensor shapes {shapes} are not [h1, {source.header.hidden_size}], "
            "[h2, h1], [1, h2]; the file is not a predictor for the hidden size in its header"
        )


def _check_weights(source: PredictorSource, weights: list[torch.Tensor]) -> None:
    dtypes = {weight.dtype for weight in weights}
    if len(dtypes) > 1 or not dtypes <= FLOAT_DTYPES:
        raise ValueError(f"{source.path}: weights are {sorted(map(str, dtypes))}, not of one float type")
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise ValueError(f"{source.path}: a weight is not a finite number; train the predictor again")


def _file_and_name(source: PredictorSource) -> list[tuple[Path, str]]:
    return list(zip(source.tensor_files, source.tensor_names, strict=True))


def _open(path: Path) -> safe_open:
    if path.exists() and not path.is_file():  # reading a pipe or a device may wait for ever
        raise ValueError(f"{path}: not a readable safetensors file (it is no regular file)")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error


def read_metadata(path: Path) -> tuple[dict[str, str], set[str]]:
    """Return the header of a safetensors file and the names of its tensors, loading none.

    Raises:
        ValueError: it cannot be read; names the file.
    """
    with _open(path) as tensors:
        return tensors.metadata() or {}, set(tensors.keys())


def _tensor_shape(path: Path, name: str) -> list[int]:
    with _open(path) as tensors:
        return list(_found(path, tensors.get_slice, name).get_shape())


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """Load one tensor of a safetensors file; errors as of :func:`read_metadata`."""
    with _open(path) as tensors:
        return _found(path, tensors.get_tensor, name)


def _found(path: Path, get: Callable[[str], Any], name: str) -> Any:
    try:
        return get(name)
    except SafetensorError as error:
        raise ValueError(f"{path}: no tensor {name} that can be read ({error})") from error
