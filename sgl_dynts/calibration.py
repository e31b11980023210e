"""Statistics of a model's queries as a file: what was counted, of which model, on how much text.

A calibration file holds ``mean``, ``covariance`` and ``modulus`` of all layers, and in the safetensors
metadata the rest of :class:`Calibration`. Statistics of another model than the served one are worse than
none: a fingerprint tells.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file

from sgl_dynts.checkpoint import read_metadata, read_tensor
from sgl_dynts.expected_attention import QueryStatistics

FORMAT_VERSION = "2"
CALIBRATION_FILE = "dynts/calibration.safetensors"
"""Inside a model's folder; a subfolder, since engines load every safetensors file beside the weights."""
TENSORS = ("mean", "covariance", "modulus")
"""As :attr:`QueryStatistics.tensors`."""
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
CONFIG_FILE = "config.json"
SAMPLES, SAMPLE_BYTES = 8, 1 << 16
"""How much of each file of weights a fingerprint reads."""
FIELDS = ("format_version", "fingerprint", "num_tokens")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """The query statistics of a whole model.

    ``layers`` are its attention layers in order, with all their query heads. ``fingerprint`` names the
    model, ``num_tokens`` is how many queries of each head were counted.
    """

    layers: tuple[QueryStatistics, ...]
    fingerprint: str
    num_tokens: int

    def to(self, device: torch.device | str) -> "Calibration":
        """Return it on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def of_heads(self, heads: slice) -> "Calibration":
        """Return the part of a tensor-parallel rank: some query heads of every layer."""
        return self._each(lambda tensor: tensor[heads])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Calibration":
        some = (QueryStatistics(*map(change, one.tensors)) for one in self.layers)
        return replace(self, layers=tuple(some))


def join_heads(parts: Sequence[Calibration]) -> Calibration:
    """Put the parts of all ranks together, in the order of their heads."""
    layers = [
        QueryStatistics(*map(torch.cat, zip(*(one.tensors for one in ranks), strict=True)))
        for ranks in zip(*(part.layers for part in parts), strict=True)
    ]
    return replace(parts[0], layers=tuple(layers))


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration file.

    Raises:
        OSError: the folder cannot be written.
    """
    layers = zip(*(one.tensors for one in calibration.layers), strict=True)
    tensors = {name: torch.stack(some).cpu() for name, some in zip(TENSORS, layers, strict=True)}
    values = (FORMAT_VERSION, calibration.fingerprint, str(calibration.num_tokens))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=dict(zip(FIELDS, values, strict=True)))


def load_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        ValueError: it is none, or what it holds is not usable; names the file.
    """
    metadata = read_metadata(path)[0]
    if any(name not in metadata for name in FIELDS):
        raise ValueError(f"{path}: no calibration file; calibrate again")
    version = metadata["format_version"]
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: calibration format_version is {version!r}, this release reads {FORMAT_VERSION!r}; "
            "calibrate again"
        )
    tensors = [read_tensor(path, name).float() for name in TENSORS]
    mean, *others = (tensor.shape for tensor in tensors)
    if len(mean) != 3 or 0 in mean or others != [(*mean, mean[-1]), (*mean[:-1], mean[-1] // 2)]:
        found = ", ".join(f"{name} {list(one.shape)}" for name, one in zip(TENSORS, tensors, strict=True))
        raise ValueError(
            f"{path}: {found} are not [layers, heads, d], [layers, heads, d, d] and "
            "[layers, heads, d / 2]; calibrate again"
        )
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError(f"{path}: a number is not finite; calibrate again")
    try:
        num_tokens = int(metadata["num_tokens"])
    except ValueError as error:
        raise ValueError(f"{path}: bad header: {error}; calibrate again") from error
    layers = map(QueryStatistics, *tensors)
    return Calibration(tuple(layers), metadata["fingerprint"], num_tokens)


@cache
def shipped_text() -> str:
    """Return the text that a model reads where no other is named: prose, code and reasoning."""
    return files("sgl_dynts").joinpath("calibration.txt").read_text(encoding="utf-8")


def fingerprint_of(model_folder: Path, text: str) -> str:
    """Return what tells a model and a text from others; reads a sample of each file of weights.

    Args:
        model_folder: with ``config.json`` and weights.
        text: that the model reads.
    """
    digest = hashlib.sha256(f"{FORMAT_VERSION}\n{text}".encode())
    config = model_folder / CONFIG_FILE
    digest.update(config.read_bytes() if config.is_file() else b"")
    for path in sorted(path for pattern in WEIGHTS for path in model_folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for sample in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def calibration_files(model_folder: Path, fingerprint: str, *, beside: bool) -> Iterator[Path]:
    """Yield where a calibration may be kept, the best place first.

    Args:
        model_folder: of the model.
        fingerprint: of model and text.
        beside: whether the folder is the user's own, and no cache of a hub's.
    """
    if beside:
        yield model_folder / CALIBRATION_FILE
    yield cache_folder() / f"{fingerprint}.safetensors"


def cache_folder() -> Path:
    """Return where this package keeps what belongs to no model's folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sgl_dynts"


def find_calibration(places: Iterable[Path], fingerprint: str) -> tuple[Calibration, Path] | None:
    """Return the first calibration of this model and text, and its file; None where there is none."""
    for path in places:
        if not path.is_file():
            continue
        try:
            found = load_calibration(path)
        except ValueError as error:
            logger.warning("DynTS: %s", error)
            continue
        if found.fingerprint == fingerprint:
            return found, path
        logger.info("DynTS: %s is of another model or text", path)
    return None


def keep_calibration(places: Iterable[Path], calibration: Calibration) -> Path | None:
    """Write a calibration to the first place that can be written; None where none can."""
    for path in places:
        try:
            save_calibration(path, calibration)
        except OSError as error:
            logger.info("DynTS: %s cannot be written: %s", path, error)
        else:
            return path
    return None
