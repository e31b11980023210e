"""Rows of a Hugging Face model's attention from one forward, recorded without a matrix of all rows.

Transformers lets an attention function be registered by name. Ours attends as the model does, and then
shows queries, keys and values, rotated as they were used, to the recorder of the moment. Layers that
attend to everything are recorded, others are not: they lose no tokens, or none that they would read.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

FUSED, EAGER = "sdpa_with_recorder", "eager_with_recorder"
FULL_ATTENTION = "full_attention"
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Attended:
    """What one layer attended with, rotated as it was used; a KV head has a group of query heads."""

    query: Tensor
    """[1, heads, s, head_dim]."""
    key: Tensor
    """[1, kv_heads, s, head_dim]."""
    value: Tensor
    """[1, kv_heads, s, value_dim]; latent attention has other sizes than of keys."""
    scaling: float
    """Of the scores."""
    module: Any
    """The layer's attention."""
    softcap: float | None = None
    """Scores x become ``softcap * tanh(x / softcap)``."""
    sinks: Tensor | None = None
    """[heads]: scores of a token that nobody sees, with a value of zero."""

    def head_rows(self, rows: range, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what tokens `rows`, consecutive ones, read in each head: [heads, rows, s].

        Callers pass at most ROWS_AT_ONCE rows, and the dtype of the softmax.
        """
        grouped = self.query[0, :, rows.start : rows.stop].unflatten(0, (self.key.shape[1], -1))
        scores = (grouped @ self.key[0, :, None].transpose(-1, -2)).flatten(0, 1).to(dtype) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        columns = torch.arange(self.key.shape[2], device=self.key.device)
        future = columns > torch.arange(rows.start, rows.stop, device=self.key.device)[:, None]
        scores = scores.masked_fill(future, float("-inf"))
        if self.sinks is None:
            return scores.softmax(-1)
        unseen = self.sinks.to(dtype)[:, None, None].expand(-1, len(rows), 1)
        return torch.cat([scores, unseen], -1).softmax(-1)[..., :-1]

    def mean_rows(self, rows: range) -> Tensor:
        """Return the mean of :meth:`head_rows` over heads: [rows, s] float32."""
        return self.head_rows(rows).mean(0)


class Recorder(Protocol):
    """Is shown what each layer attended with once, in the order of the layers."""

    def record(self, attended: Attended) -> None:
        """Take what is needed of it."""
        ...


class _Count:
    """Passes on what it is shown, and counts."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder, self.seen = recorder, 0

    def record(self, attended: Attended) -> None:
        self.seen += 1
        if self._recorder is not None:
            self._recorder.record(attended)


_NOW: ContextVar[_Count | None] = ContextVar("recorder", default=None)


@contextmanager
def recording_attention(model: PreTrainedModel, recorder: Recorder | None = None) -> Iterator[None]:
    """Let the recorder see each layer of ``model`` that attends to everything, in its forward here.

    Raises:
        ValueError: the forward went through none, or not through an attention that can be seen.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation or "eager"
    count = _Count(recorder)
    model.set_attn_implementation(EAGER if _needs_its_own(model) else FUSED)
    token = _NOW.set(count)
    try:
        yield
        if not count.seen:
            raise ValueError(
                f"model_type={model.config.model_type!r}: none of its layers attends to everything by an "
                "attention that can be recorded, so that no target can be computed; use another model"
            )
    finally:
        _NOW.reset(token)
        model.set_attn_implementation(before)


def row_chunks(first: int, last: int) -> Iterator[range]:
    """Split rows `first` to `last`, without the latter, into ranges of at most ROWS_AT_ONCE."""
    for start in range(first, last, ROWS_AT_ONCE):
        yield range(start, min(start + ROWS_AT_ONCE, last))


def _needs_its_own(model: PreTrainedModel) -> bool:
    """Whether its attention does what the fused kernel cannot: soft caps, or sinks."""
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    return capped or any(name.endswith(".sinks") for name, _ in model.named_parameters())


def _attends_to_everything(module: Any, length: int, window: int | None) -> bool:
    """Whether a layer does, by the kind that its model names, else by the window that it got."""
    kinds = getattr(module.config, "layer_types", None)
    if kinds is not None:
        return kinds[module.layer_idx] == FULL_ATTENTION
    return window is None or length <= window


def _record(module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, **asked: Any) -> None:
    now = _NOW.get()
    if now is not None and _attends_to_everything(module, key.shape[2], asked.get("sliding_window")):
        cap, sinks = asked.get("softcap"), asked.get("s_aux")
        now.record(Attended(query, key, value, scaling, module, cap, sinks))


def _recorded(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Return an attention function for transformers that shows each layer, and attends as ``attend``."""

    def record_and_attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float,
        **asked: Any,
    ) -> tuple[Tensor, Tensor | None]:
        _record(module, query, key, value, scaling, **asked)
        return attend(module, query, key, value, attention_mask, scaling=scaling, **asked)

    return record_and_attend


def _attend_by_own_file(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Attend by the function that the model's own file has; its memory grows by s squared per layer."""
    return sys.modules[type(module).__module__].eager_attention_forward(  # pyright: ignore
        module, *args, **kwargs
    )


AttentionInterface.register(FUSED, _recorded(sdpa_attention_forward))
AttentionMaskInterface.register(FUSED, sdpa_mask)
AttentionInterface.register(EAGER, _recorded(_attend_by_own_file))
AttentionMaskInterface.register(EAGER, eager_mask)
