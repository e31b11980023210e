"""Expected attention in all layers of a request: one after the other in torch, or by one kernel."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sgl_dynts.expected_attention import HORIZON, HeldLayer, LayerQueries, Rotation
from sgl_dynts.transfer import to_device

LEAST = 1e-30
"""Instead of a covariance that is 0."""


@dataclass(frozen=True)
class PairedQueries:
    """What is known of all layers' queries, laid out for ``expected_kernels.expected_logits``."""

    mean: torch.Tensor
    """[layers, heads, 2, side] float32."""
    spread: torch.Tensor
    """[layers, heads, 3, side, side] float16, of each head as shares of the largest."""
    largest: torch.Tensor
    """[layers, heads] float32."""
    rotations: tuple[Rotation, ...]
    """Those that differ."""
    rotation_of: tuple[int, ...]
    """For each layer which of them is its."""

    @classmethod
    def fits(cls, queries: Sequence[LayerQueries]) -> bool:
        """Whether the layers have as many heads of one even size, and turn as many pairs alike."""
        kinds = {
            (layer.statistics.mean.shape, layer.rotation.cos.shape[-1], layer.rotation.interleaved)
            for layer in queries
        }
        return len(kinds) == 1 and queries[0].statistics.mean.shape[-1] % 2 == 0

    @classmethod
    def of(cls, queries: Sequence[LayerQueries]) -> "PairedQueries":
        """Lay out what is known of layers that fit."""
        from sgl_dynts.expected_kernels import block_pairs  # triton: only where a kernel will run

        rotations = tuple({id(layer.rotation): layer.rotation for layer in queries}.values())
        numbers = {id(rotation): number for number, rotation in enumerate(rotations)}
        places = pair_places(rotations[0], queries[0].statistics.mean.shape[-1])
        room = block_pairs(len(places[0]))
        means = [_paired_mean(layer.statistics.mean, places, room) for layer in queries]
        spreads = [_paired_spread(layer.statistics.covariance, places, room) for layer in queries]
        largest = torch.stack([spread.abs().amax((1, 2, 3)).clamp_min(LEAST) for spread in spreads])
        shares = [
            (spread / size[:, None, None, None]).half()
            for spread, size in zip(spreads, largest, strict=True)
        ]
        of_layers = tuple(numbers[id(layer.rotation)] for layer in queries)
        return cls(torch.stack(means), torch.stack(shares), largest, rotations, of_layers)

    def turns(self, position: int, horizon: tuple[int, ...]) -> torch.Tensor:
        """Return [rotations, 2, turned pairs] float32: mean cosines and sines of positions to come."""
        ahead = [rotation.ahead_of(position, horizon) for rotation in self.rotations]
        return torch.stack([torch.stack([mean.cos, mean.sin]) for mean in ahead]).float()


def pair_places(rotation: Rotation, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of the first and of the other numbers of a head's pairs, each [head_dim / 2].

    Args:
        rotation: of the layer.
        head_dim: even.
    """
    return rotation.split(torch.arange(head_dim))


def _paired_mean(mean: torch.Tensor, places: tuple[torch.Tensor, ...], room: int) -> torch.Tensor:
    parts = torch.stack([mean[:, part.to(mean.device)] for part in places], 1)
    return torch.nn.functional.pad(parts, (0, room - parts.shape[-1]))


def _paired_spread(covariance: torch.Tensor, places: tuple[torch.Tensor, ...], room: int) -> torch.Tensor:
    one, two = (part.to(covariance.device) for part in places)
    blocks = [
        covariance[:, one][..., one] / 2,
        covariance[:, two][..., one],
        covariance[:, two][..., two] / 2,
    ]
    missing = room - len(one)
    return torch.nn.functional.pad(torch.stack(blocks, 1), (0, missing, 0, missing))


def expected_with_torch(
    layers: Sequence[HeldLayer],
    queries: Sequence[LayerQueries],
    position: int,
    horizon: tuple[int, ...] = HORIZON,
) -> torch.Tensor:
    """Return what each layer's :meth:`LayerQueries.expected_output` says: [layers, kv_heads, held]."""
    pairs = zip(layers, queries, strict=True)
    return torch.stack([known.expected_output(layer, position, horizon) for layer, known in pairs])


def expected_with_kernel(
    layers: Sequence[HeldLayer],
    queries: PairedQueries,
    position: int,
    horizon: tuple[int, ...] = HORIZON,
) -> torch.Tensor:
    """Return the same, up to the rounding of factors to float16, in one launch and some small ones.

    Args:
        layers: of one request, with slots, stored alike; a slot's heads lie together.
        queries: of the same layers.
        position: of the newest token.
        horizon: distances from it at which queries are foreseen.

    Returns:
        [layers, kv_heads, held] float32.
    """
    from sgl_dynts.expected_kernels import expected_logits  # triton: only where a kernel will run

    first = layers[0]
    assert first.slots is not None
    places = [_places(*pair) for pair in zip(layers, queries.rotation_of, strict=True)]
    scales = [(layer.scaling, layer.key_scale, layer.value_scale) for layer in layers]
    logits, sizes = expected_logits(
        first.slots,
        to_device(torch.tensor(places), queries.mean.device),
        to_device(torch.tensor(scales), queries.mean.device),
        queries.turns(position, horizon),
        queries.mean,
        queries.spread,
        queries.largest,
        first.stored_keys.dtype,
        queries.rotations[0].interleaved,
        (first.stored_keys.shape[-1], first.stored_values.shape[-1]),
        first.stored_keys.shape[1],
    )
    return logits.softmax(-1).mean(2) * sizes


def _places(layer: HeldLayer, rotation: int) -> tuple[int, ...]:
    """Where a layer's K and V lie, how far its slots are apart, and how it rotates."""
    stored = layer.stored_keys, layer.stored_values
    assert all(each[0].is_contiguous() for each in stored)
    return (*(each.data_ptr() for each in stored), *(each.stride(0) for each in stored), rotation)
