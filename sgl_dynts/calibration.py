"""Statistics of a model's queries as a file: what was counted, of which model, on how much text.

A calibration file holds ``mean`` and ``covariance`` of all layers, and in the safetensors metadata the
rest of :class:`Calibration`. Statistics of another model than the served one are worse than none: a
fingerprint tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from sgl_dynts.checkpoint import read_metadata, read_tensor
from sgl_dynts.expected_attention import QueryStatistics

FORMAT_VERSION = "1"
CALIBRATION_FILE = "dynts/calibration.safetensors"
"""Inside a model's folder; a subfolder, since engines load every safetensors file beside the weights."""
MEAN, COVARIANCE = "mean", "covariance"
FIELDS = ("format_version", "fingerprint", "num_tokens")


@dataclass(frozen=True)
class Calibration:
    """The query statistics of a whole model.

    ``layers`` are its attention layers in order, with all their query heads. ``fingerprint`` names the
    model, ``num_tokens`` is how many queries of each head were counted.
    """

    layers: tuple[QueryStatistics, ...]
    fingerprint: str
    num_tokens: int

    def of_heads(self, heads: slice) -> "Calibration":
        """Return the part of a tensor-parallel rank: some query heads of every layer."""
        some = (QueryStatistics(one.mean[heads], one.covariance[heads]) for one in self.layers)
        return Calibration(tuple(some), self.fingerprint, self.num_tokens)


def join_heads(parts: Sequence[Calibration]) -> Calibration:
    """Put the parts of all ranks together, in the order of their heads."""
    layers = [
        QueryStatistics(
            torch.cat([one.mean for one in ranks]), torch.cat([one.covariance for one in ranks])
        )
        for ranks in zip(*(part.layers for part in parts), strict=True)
    ]
    return Calibration(tuple(layers), parts[0].fingerprint, parts[0].num_tokens)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration file.

    Raises:
        OSError: the folder cannot be written.
    """
    tensors = {
        MEAN: torch.stack([one.mean for one in calibration.layers]).cpu(),
        COVARIANCE: torch.stack([one.covariance for one in calibration.layers]).cpu(),
    }
    values = (FORMAT_VERSION, calibration.fingerprint, str(calibration.num_tokens))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=dict(zip(FIELDS, values, strict=True)))


def load_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        ValueError: it is none, or what it holds is not usable; names the file.
    """
    metadata = read_metadata(path)[0]
    lacking = [name for name in FIELDS if name not in metadata]
    if lacking or metadata["format_version"] != FORMAT_VERSION:
        raise ValueError(f"{path}: no calibration file that this release reads; calibrate again")
    mean, covariance = (read_tensor(path, name).float() for name in (MEAN, COVARIANCE))
    if mean.ndim != 3 or 0 in mean.shape or covariance.shape != (*mean.shape, mean.shape[-1]):
        raise ValueError(
            f"{path}: {MEAN} {list(mean.shape)} and {COVARIANCE} {list(covariance.shape)} are not "
            "[layers, heads, d] and [layers, heads, d, d]; calibrate again"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"{path}: a number is not finite; calibrate again")
    try:
        num_tokens = int(metadata["num_tokens"])
    except ValueError as error:
        raise ValueError(f"{path}: bad header: {error}; calibrate again") from error
    layers = map(QueryStatistics, mean, covariance)
    return Calibration(tuple(layers), metadata["fingerprint"], num_tokens)
