"""K and V of one request, read from SGLang's pool layer by layer."""

from collections.abc import Iterator, Sequence

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sgl_dynts.expected_attention import HeldLayer


def held_layers(layers: Sequence[RadixAttention], slots: torch.Tensor, pool) -> Iterator[HeldLayer]:
    """Yield what each attention layer holds in some slots.

    Args:
        layers: of the model.
        slots: [held] int64.
        pool: SGLang's KV pool.
    """
    for layer in layers:
        keys, values = pool.get_kv_buffer(layer.layer_id)
        yield HeldLayer(
            keys,
            values,
            layer.scaling,
            slots,
            _scale(keys, layer.k_scale_float),
            _scale(values, layer.v_scale_float),
        )


def _scale(stored: torch.Tensor, scale: float | None) -> float:
    """Return what stored numbers are a part of; only those of one byte are."""
    return scale if scale is not None and stored.element_size() == 1 else 1.0
