"""What keys are worth at the distances to come, from themselves and what is known of queries alone.

Two numbers that a rotation turns together are one complex number. Before their rotation the queries of a
head lie close to their mean, so a key's logit is a sum of cosines of its distance. Where they scatter, a
key's size counts as well. No attention is recorded, and nothing is trained.
Source: W. Mao et al., "TriAttention", arXiv 2604.04921; its code, github.com/WeianMao/triattention.
"""

from dataclasses import dataclass

import torch

from sgl_dynts.expected_attention import LayerQueries, Rotation

OFFSETS = tuple(1 << power for power in range(17))
"""How far beyond the next token the queries stand that are foreseen."""


@dataclass(frozen=True)
class DistantQueries:
    """One layer's queries at all offsets from a position, but for that position's own rotation."""

    rotation: Rotation
    frequencies: torch.Tensor
    """[pairs] float64, the angle by which a position turns each pair; 0 for those that none turns."""
    mean: torch.Tensor
    """[query_heads, pairs] complex64: the mean query, turned by each offset, the mean over offsets."""
    scatter: torch.Tensor
    """[query_heads, pairs] float32: mean of the lengths less the length of the mean, at least 0."""

    @classmethod
    def of(cls, queries: LayerQueries, offsets: tuple[int, ...] = OFFSETS) -> "DistantQueries":
        """Foresee a layer's queries; both attention factors of its rotation are included."""
        rotation, statistics = queries.rotation, queries.statistics
        mean = torch.complex(*rotation.split(statistics.mean))
        num_rest = mean.shape[-1] - rotation.cos.shape[-1]
        frequencies = torch.nn.functional.pad(rotation.frequencies(), (0, num_rest))
        factor = torch.hypot(rotation.cos[0], rotation.sin[0])
        size = torch.nn.functional.pad(factor, (0, num_rest), value=1.0)
        distances = torch.tensor(offsets, dtype=torch.float64, device=mean.device)
        turns = _turn(distances[:, None] * frequencies).mean(0)
        scatter = (statistics.modulus - mean.abs()).clamp_min(0)
        return cls(rotation, frequencies, (mean * size * turns).to(mean.dtype), scatter * size)

    def scores(self, keys: torch.Tensor, position: int) -> torch.Tensor:
        """Return what each key is worth to each query head.

        S(k) = mean over offsets o of sum_f |E q_f| |k_f| cos(w_f (D + o) + arg E q_f - arg k_f)
        + sum_f (E |q_f| - |E q_f|) |k_f|. There q and k are as before their rotation, D is the distance
        from k to the next token and w_f the frequency of pair f; both sums are times the attention factor
        squared. A key is stored rotated, so the mean query is turned to its position, and no key back.

        Args:
            keys: [n, kv_heads, head_dim], as they are stored: rotated. Any float dtype; head_dim even.
            position: of the newest token that is held; queries stand at ``position + 1`` plus an offset.

        Returns:
            [kv_heads, group, n] float32.
        """
        one, two = self.rotation.split(keys.float())  # [n, kv_heads, pairs]
        turned = self.mean * _turn(self.frequencies * (position + 1)).to(self.mean.dtype)
        parts = (one, turned.real), (two, turned.imag), (torch.hypot(one, two), self.scatter)
        kv_heads, pairs = one.shape[1:]
        by_head = [
            torch.einsum("nkp,kgp->kgn", key, query.reshape(kv_heads, -1, pairs)) for key, query in parts
        ]
        return by_head[0] + by_head[1] + by_head[2]


def _turn(angles: torch.Tensor) -> torch.Tensor:
    return torch.polar(torch.ones_like(angles), angles)
