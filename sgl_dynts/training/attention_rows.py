"""Rows of a Hugging Face model's attention from one fused forward, without a matrix of all rows.

Transformers lets an attention function be registered by name and hands it the keyword arguments of
the model's forward. Ours attends with the fused kernel and then shows queries, keys and values, rotated
as they were used, to the recorder that the caller passed along.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "sdpa_with_recorder"
SUPPORTED_MODEL_TYPES = ("llama", "qwen2", "qwen3")
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Attended:
    """What one layer attended with, rotated as it was used; a KV head has a group of query heads."""

    query: Tensor
    """[1, heads, s, head_dim]."""
    key: Tensor
    """[1, kv_heads, s, head_dim]."""
    value: Tensor
    """[1, kv_heads, s, head_dim]."""
    scaling: float
    """Of the scores."""
    module: Any
    """The layer's attention, whose ``o_proj`` takes the heads' outputs."""

    def head_rows(self, rows: range, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what tokens `rows`, consecutive ones, read in each head: [heads, rows, s].

        Callers pass at most ROWS_AT_ONCE rows, and the dtype of the softmax.
        """
        grouped = self.query[0, :, rows.start : rows.stop].unflatten(0, (self.key.shape[1], -1))
        scores = (grouped @ self.key[0, :, None].transpose(-1, -2)).flatten(0, 1).to(dtype) * self.scaling
        columns = torch.arange(self.key.shape[2], device=self.key.device)
        future = columns > torch.arange(rows.start, rows.stop, device=self.key.device)[:, None]
        return scores.masked_fill(future, float("-inf")).softmax(-1)

    def mean_rows(self, rows: range) -> Tensor:
        """Return the mean of :meth:`head_rows` over heads: [rows, s] float32."""
        return self.head_rows(rows).mean(0)


class Recorder(Protocol):
    """Is shown what each layer attended with once, in the order of the layers."""

    def record(self, attended: Attended) -> None:
        """Take what is needed of it."""
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
        recorder.record(Attended(query, key, value, scaling, module))
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(ATTENTION_NAME, _attend_and_record)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
