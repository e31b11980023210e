"""Rows of a Hugging Face model's attention from one fused forward, without a matrix of all rows.

Transformers lets an attention function be registered by name and hands it the keyword arguments of
the model's forward. Ours attends with the fused kernel and then shows queries and keys, rotated as
they were used, to the recorder that the caller passed along.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "sdpa_with_recorder"
SUPPORTED_MODEL_TYPES = ("llama", "qwen2", "qwen3")
ROWS_AT_ONCE = 64


class Recorder(Protocol):
    """Is shown each layer's queries and keys once, in the order of the layers."""

    def record(self, query: Tensor, key: Tensor, scaling: float) -> None:
        """Take what is needed of query [1, heads, s, head_dim] and key [1, kv_heads, s, head_dim]."""
        ...


@contextmanager
def recording_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` attend with the fused kernel and accept ``recorder=`` in its forward.

    Raises:
        ValueError: the model's type is not supported, or its attention has a sliding window.
    """
    _check_supported(model)
    before = model.config._attn_implementation or "eager"
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attention_rows(query: Tensor, key: Tensor, scaling: float, rows: range) -> Tensor:
    """Return what tokens `rows` read, the mean over heads: [rows, s] float32.

    The largest intermediate is [heads, rows, s] float32; callers pass at most ROWS_AT_ONCE rows.

    Args:
        query: [1, heads, s, head_dim], rotated.
        key: [1, kv_heads, s, head_dim], rotated; heads are groups of consecutive query heads.
        scaling: of the scores.
        rows: consecutive token indices.
    """
    groups = query[0, :, rows.start : rows.stop].unflatten(0, (key.shape[1], -1))
    scores = (groups @ key[0, :, None].transpose(-1, -2)).flatten(0, 1).float() * scaling
    columns = torch.arange(key.shape[2], device=key.device)
    future = columns > torch.arange(rows.start, rows.stop, device=key.device)[:, None]
    return scores.masked_fill(future, float("-inf")).softmax(-1).mean(0)


def row_chunks(first: int, last: int) -> Iterator[range]:
    """Split rows `first` to `last`, without the latter, into ranges of at most ROWS_AT_ONCE."""
    for start in range(first, last, ROWS_AT_ONCE):
        yield range(start, min(start + ROWS_AT_ONCE, last))


def _check_supported(model: PreTrainedModel) -> None:
    config = model.config
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise ValueError(
            f"model_type={config.model_type!r}: attention targets are computed for "
            f"{', '.join(SUPPORTED_MODEL_TYPES)}; use a model of one of these types"
        )
    if "sliding_attention" in (config.to_dict().get("layer_types") or ()):
        raise ValueError(
            "the model has sliding_attention layers, which DynTS does not serve; "
            "use a model whose layers all attend to everything"
        )


def _attend_and_record(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    recorder: Recorder | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    if recorder is not None:
        recorder.record(query, key, scaling)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(ATTENTION_NAME, _attend_and_record)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
