"""The attention that a key can expect from queries to come, from K, V and statistics of queries alone.

A model's queries before their rotation are much alike wherever they stand. With their mean and
covariance, taken once per model, the logit that a held key gets from the queries of the next positions
can be foreseen: no attention is recorded, and nothing is trained.
Source: A. Devoto et al., "Expected Attention", arXiv 2510.00636; here the rotations of the positions to
come are averaged.
"""

from dataclasses import dataclass
from functools import partial
from math import pi

import torch

from sgl_dynts.transfer import to_device

HORIZON = (1, 4, 16, 64, 128, 256, 384, 512)
"""How far ahead of the newest token the queries stand that are foreseen."""


@dataclass(frozen=True)
class Rotation:
    """How a layer rotates queries and keys; of a head the first ``2 * cos.shape[1]`` numbers.

    ``interleaved`` rotates neighbours (GPT-J), else number i with number i + half (GPT-NeoX).
    """

    cos: torch.Tensor
    """[positions, half] float32, as the layer's own table has it, its attention factor included."""
    sin: torch.Tensor
    """[positions, half] float32."""
    interleaved: bool = False

    def ahead_of(self, position: int, horizon: tuple[int, ...] = HORIZON) -> "MeanRotation":
        """Return the mean rotation of the positions to come; those beyond the table are its last.

        Args:
            position: of the newest token.
            horizon: distances from it.
        """
        places = torch.tensor(horizon).add(position).clamp_max(len(self.cos) - 1)
        ahead = to_device(places, self.cos.device)
        return MeanRotation(self.cos[ahead].mean(0), self.sin[ahead].mean(0), self.interleaved)

    def undo(self, rotated: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return queries as they were before their rotation.

        Args:
            rotated: [n, heads, head_dim] float32.
            positions: [n] int64.
        """
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        size = cos.square() + sin.square()  # an attention factor scales, and is undone as well
        return MeanRotation(cos / size, sin / size, self.interleaved).back(rotated)

    def split(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first and the other numbers of a head's pairs, each [..., head_dim / 2].

        The pairs that the rotation turns come first; the rest is paired half with half.

        Args:
            vectors: [..., head_dim], which is even.
        """
        width = 2 * self.cos.shape[-1]
        turned, rest = vectors[..., :width], vectors[..., width:]
        one, two = (turned[..., ::2], turned[..., 1::2]) if self.interleaved else turned.chunk(2, dim=-1)
        other_one, other_two = rest.chunk(2, dim=-1)
        return torch.cat([one, other_one], -1), torch.cat([two, other_two], -1)

    def frequencies(self) -> torch.Tensor:
        """Return the angle by which a position turns each pair, [half] float64, in radians.

        It is read at positions that double, each time as the angle nearest to twice the one before. So it
        holds far beyond the table, whose first angle is known to seven digits alone.
        """
        angle = torch.zeros_like(self.cos[0], dtype=torch.float64)
        position = 1
        while position < len(self.cos):
            read = torch.atan2(self.sin[position].double(), self.cos[position].double())
            angle = read + 2 * pi * ((2 * angle - read) / (2 * pi)).round()
            position *= 2
        return angle * 2 / position


@dataclass(frozen=True)
class MeanRotation:
    """A rotation, or the mean of several; ``cos`` and ``sin`` [..., half] float32."""

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool

    def back(self, vectors: torch.Tensor) -> torch.Tensor:
        """Apply the transpose, which for one rotation turns back: [..., head_dim], float32."""
        width = 2 * self.cos.shape[-1]
        turned, rest = vectors[..., :width], vectors[..., width:]
        one, two = (turned[..., ::2], turned[..., 1::2]) if self.interleaved else turned.chunk(2, dim=-1)
        parts = one * self.cos + two * self.sin, two * self.cos - one * self.sin
        back = torch.stack(parts, -1).flatten(-2) if self.interleaved else torch.cat(parts, -1)
        return torch.cat([back, rest], -1)


@dataclass(frozen=True)
class QueryStatistics:
    """What is known of one layer's queries before their rotation, after bias and norm."""

    mean: torch.Tensor
    """[query_heads, head_dim] float32."""
    covariance: torch.Tensor
    """[query_heads, head_dim, head_dim] float32."""
    modulus: torch.Tensor
    """[query_heads, head_dim / 2] float32, of every pair the mean of its length; see `Rotation.split`."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, in the order above."""
        return self.mean, self.covariance, self.modulus


def expected_attention(
    keys: torch.Tensor, statistics: QueryStatistics, rotation: MeanRotation, scaling: float
) -> torch.Tensor:
    """Return what each held key gets from a query to come.

    With R the mean rotation and a query before it drawn from N(mu, Sigma), the logit of a key k is
    s mu R'k + s^2/2 (R'k)' Sigma (R'k): the logarithm of the mean of exp(s q'k), exact for one position.

    Args:
        keys: [held, kv_heads, head_dim], as they are stored: rotated. Any float dtype.
        statistics: of the layer.
        rotation: of positions to come.
        scaling: s, of the layer's logits.

    Returns:
        [kv_heads, group, held] float32, over the held keys each query head's sum is 1.
    """
    _, kv_heads, head_dim = keys.shape
    turned = rotation.back(keys.float()).transpose(0, 1)[:, None]  # [kv_heads, 1, held, head_dim]
    mean = statistics.mean.view(kv_heads, -1, head_dim, 1)
    spread = statistics.covariance.view(kv_heads, -1, head_dim, head_dim)
    logits = (turned @ mean)[..., 0] * scaling
    logits = logits + ((turned @ spread) * turned).sum(-1) * (scaling**2 / 2)
    return logits.softmax(-1)


def expected_output(
    keys: torch.Tensor,
    values: torch.Tensor,
    statistics: QueryStatistics,
    rotation: MeanRotation,
    scaling: float,
) -> torch.Tensor:
    """Return how much of a head's output each held token can expect to be: attention times |v|.

    Args:
        keys: [held, kv_heads, head_dim], as stored.
        values: [held, kv_heads, value_dim].
        statistics: of the layer.
        rotation: of positions to come.
        scaling: of the layer's logits.

    Returns:
        [kv_heads, held] float32, the mean over the queries that share a KV head.
    """
    attention = expected_attention(keys, statistics, rotation, scaling).mean(1)
    return attention * values.float().norm(dim=-1).T


@dataclass(frozen=True)
class HeldLayer:
    """What one attention layer holds of a request, without the token that is in computation."""

    stored_keys: torch.Tensor
    """[num_slots, kv_heads, head_dim], as stored: rotated."""
    stored_values: torch.Tensor
    """[num_slots, kv_heads, value_dim]."""
    scaling: float
    """Of logits."""
    slots: torch.Tensor | None = None
    """[held] int64, the request's; None: all, in their order."""
    key_scale: float = 1.0
    """What is stored times this is meant; so for ``value_scale``."""
    value_scale: float = 1.0

    @property
    def keys(self) -> torch.Tensor:
        """[held, kv_heads, head_dim]: a copy, in float32 where numbers of one byte are stored."""
        return self._held(self.stored_keys, self.key_scale)

    @property
    def values(self) -> torch.Tensor:
        """[held, kv_heads, value_dim], as of ``keys``."""
        return self._held(self.stored_values, self.value_scale)

    def _held(self, stored: torch.Tensor, scale: float) -> torch.Tensor:
        if self.slots is None:
            return stored
        if stored.element_size() > 1:
            return stored[self.slots]
        return stored.view(torch.uint8)[self.slots].view(stored.dtype).float() * scale


@dataclass(frozen=True)
class LayerQueries:
    """What is known of the queries that one attention layer will ask."""

    statistics: QueryStatistics
    rotation: Rotation

    def expected_output(
        self, layer: HeldLayer, position: int, horizon: tuple[int, ...] = HORIZON
    ) -> torch.Tensor:
        """Return [kv_heads, held] float32; see :func:`expected_output`.

        Args:
            layer: what is held.
            position: of the newest token.
            horizon: distances from it at which queries are foreseen.
        """
        ahead = self.rotation.ahead_of(position, horizon)
        return expected_output(layer.keys, layer.values, self.statistics, ahead, layer.scaling)


class QueryMoments:
    """Adds up queries, and gives the statistics of all of them; float64, so order hardly counts."""

    def __init__(self, num_heads: int, head_dim: int, rotation: Rotation) -> None:
        """Begin with none.

        Args:
            num_heads: query heads.
            head_dim: width of each.
            rotation: of the layer: it says which numbers are a pair, and where queries are added.
        """
        self.count = 0
        self._rotation = rotation
        zeros = partial(torch.zeros, dtype=torch.float64, device=rotation.cos.device)
        self._sum = zeros(num_heads, head_dim)
        self._products = zeros(num_heads, head_dim, head_dim)
        self._lengths = zeros(num_heads, head_dim // 2)

    def add(self, queries: torch.Tensor) -> None:
        """Take [n, num_heads, head_dim] queries before their rotation, any float dtype."""
        by_head = queries.transpose(0, 1).double()
        self._sum += by_head.sum(1)
        self._products += by_head.transpose(1, 2) @ by_head
        self._lengths += torch.hypot(*self._rotation.split(by_head)).sum(1)
        self.count += len(queries)

    def statistics(self) -> QueryStatistics:
        """Return what is known of them.

        Raises:
            ValueError: there are fewer than two queries.
        """
        if self.count < 2:
            raise ValueError(f"statistics of {self.count} queries: give a text of at least two tokens")
        mean = self._sum / self.count
        covariance = self._products / self.count - mean[:, :, None] * mean[:, None]
        modulus = self._lengths / self.count
        return QueryStatistics(mean.float(), covariance.float(), modulus.float())
