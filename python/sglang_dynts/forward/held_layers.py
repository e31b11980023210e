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
            _scaled(keys, slots, layer.k_scale_float),
            _scaled(values, slots, layer.v_scale_float),
            layer.scaling,
        )


def _scaled(buffer: torch.Tensor, slots: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Return some slots of a buffer; numbers of one byte are stored as a part of their scale."""
    if buffer.element_size() > 1:
        return buffer[slots]
    found = buffer.view(torch.uint8)[slots].view(buffer.dtype).float()
    return found if scale is None else found * scale
