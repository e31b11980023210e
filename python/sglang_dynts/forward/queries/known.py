"""What a server knows of its model's queries: from a file, else the model reads a text at its start."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.srt.configs.load_config import LoadFormat
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.runtime_context import get_model, get_parallel

from sgl_dynts.calibration import (
    Calibration,
    calibration_files,
    find_calibration,
    fingerprint_of,
    join_heads,
    keep_calibration,
    shipped_text,
)
from sgl_dynts.expected_attention import LayerQueries, Rotation
from sglang_dynts.boot.configuration import arguments
from sglang_dynts.boot.predictor_files import local_model_folder
from sglang_dynts.forward.queries.calibrate import calibrate, judged_layers

LEAST_TOKENS, MOST_TOKENS = 1000, 1 << 15
"""Of a text; what follows is not read. Its covariance has to be that of some 128 numbers."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownQueries:
    """What each layer that compactions reach will ask, and where that is known from."""

    layers: tuple[LayerQueries, ...]
    facts: dict[str, Any]
    """``path`` of the file, None where none is kept, ``fingerprint`` and ``num_tokens``."""


def know_queries(scheduler, tokenizer) -> KnownQueries:
    """Find the calibration of the served model, or let the model read a text and keep what it shows.

    All ranks do the same: they read the file where all of them find it, else they calibrate together.

    Args:
        scheduler: SGLang's, whose governor exists and whose loop has not begun.
        tokenizer: of the served model.

    Raises:
        ValueError: the text cannot be read or is too short, or how the model rotates is not known.
    """
    layers = list(judged_layers(scheduler.tp_worker.model_runner))
    text = calibration_text(arguments().dynts_calibration_text)
    places, fingerprint = _places(text)
    found = find_calibration(places, fingerprint)
    if found is not None and not _fits(found[0], layers):
        found = None
    if all(get_parallel().tp_group.all_gather_object(found is not None)) and found is not None:
        calibration, path = found
        logger.info("DynTS: what the model's queries are like is known from %s", path)
    else:
        calibration, path = _read_text(scheduler, tokenizer.encode(text), fingerprint, places)
    facts = {
        "path": path and str(path),
        "fingerprint": calibration.fingerprint,
        "num_tokens": calibration.num_tokens,
    }
    return KnownQueries(tuple(_of_rank(calibration, layers)), facts)


def calibration_text(path: str | None) -> str:
    """Return the text that the model is to read: a file's, else the one that ships.

    Raises:
        ValueError: the file cannot be read as UTF-8.
    """
    if path is None:
        return shipped_text()
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--dynts-calibration-text {path}: {error}; name a text file in UTF-8"
        ) from error


def _places(text: str) -> tuple[list[Path], str]:
    """Where this model's calibration may lie, and its fingerprint; nowhere for weights out of the air."""
    model = get_model()
    if model.load_format == LoadFormat.DUMMY:
        return [], LoadFormat.DUMMY.value
    folder = local_model_folder(model.model_path, model.revision)
    fingerprint = fingerprint_of(folder, text)
    is_own = Path(model.model_path).exists()
    return list(calibration_files(folder, fingerprint, beside=is_own)), fingerprint


def _read_text(
    scheduler, token_ids: list[int], fingerprint: str, places: list[Path]
) -> tuple[Calibration, Path | None]:
    start = time.perf_counter()
    token_ids = token_ids[:MOST_TOKENS]
    if len(token_ids) < LEAST_TOKENS:
        raise ValueError(
            f"--dynts-calibration-text {arguments().dynts_calibration_text}: {len(token_ids)} tokens say "
            f"too little of the model's queries; name a text of {LEAST_TOKENS} or more"
        )
    own = Calibration(tuple(calibrate(scheduler, token_ids)), fingerprint, len(token_ids))
    parts = get_parallel().attn_tp_group.all_gather_object(own.to("cpu"))
    whole = join_heads(parts)
    everyone = get_parallel().tp_group
    is_first = everyone.rank_in_group == 0
    path = everyone.all_gather_object(keep_calibration(places, whole) if is_first else None)[0]
    logger.info(
        "DynTS: the model read %d tokens in %.1f s, to know what its queries are like; kept in %s",
        len(token_ids),
        time.perf_counter() - start,
        path or "no file",
    )
    return whole, path


def _fits(calibration: Calibration, layers: list[tuple[RadixAttention, Rotation]]) -> bool:
    """Whether a calibration has this model's layers, heads and head size."""
    layer, heads = layers[0][0], layers[0][0].tp_q_head_num * get_parallel().attn_tp_size
    shape = (len(calibration.layers), *calibration.layers[0].mean.shape)
    return shape == (len(layers), heads, layer.qk_head_dim)


def _of_rank(
    calibration: Calibration, layers: list[tuple[RadixAttention, Rotation]]
) -> Iterator[LayerQueries]:
    layer, rotation = layers[0]
    first = get_parallel().attn_tp_rank * layer.tp_q_head_num
    own = calibration.of_heads(slice(first, first + layer.tp_q_head_num)).to(rotation.cos.device)
    for statistics, (_layer, rotation) in zip(own.layers, layers, strict=True):
        yield LayerQueries(statistics, rotation)
