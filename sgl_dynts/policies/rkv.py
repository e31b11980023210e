"""Importance less redundancy."""

from dataclasses import dataclass

import torch

from sgl_dynts.policies.attention import LayerView
from sgl_dynts.policies.base import Observing
from sgl_dynts.policies.registry import register


@register
@dataclass(frozen=True)
class RKV(Observing):
    """R-KV (arXiv 2505.24133): importance less redundancy, that is what similar keys repeat.

    Z = lambda * importance - (1 - lambda) * redundancy, its defaults. Importance is attention from the
    newest eight queries, max-pooled; redundancy is a softmax of the mean cosine similarity to other
    keys that are similar above a threshold, where the newest of a key's likes is exempt. The paper holds
    a budget and a buffer of 128 tokens; here the windows are those of all policies.
    """

    name = "rkv"
    color = "#a0522d"
    keeps = "0.1 importance - 0.9 redundancy"
    paper = "R-KV, arXiv 2505.24133"
    differs = "heads and layers averaged; no buffer of its own"
    weight: float = 0.1
    num_queries: int = 8
    kernel: int = 7
    threshold: float = 0.5

    def score_layer(self, view: LayerView, chosen: slice) -> torch.Tensor:
        """Return the mean of Z over heads."""
        seen = view.attention()[:, :, -self.num_queries :, chosen].mean((1, 2))
        pool = torch.nn.functional.max_pool1d
        importance = pool(seen, self.kernel, 1, self.kernel // 2)
        return (self.weight * importance - (1 - self.weight) * self.redundancy(view.keys[chosen])).mean(0)

    def redundancy(self, keys: torch.Tensor) -> torch.Tensor:
        """Return [kv_heads, n] for keys [n, kv_heads, head_dim], each head's sum 1."""
        unit = torch.nn.functional.normalize(keys.float(), dim=-1).transpose(0, 1)
        similar = unit @ unit.transpose(1, 2)
        alike = (similar > self.threshold) & ~torch.eye(len(keys), dtype=torch.bool, device=keys.device)
        columns = torch.arange(len(keys), device=keys.device)
        newest = (columns * alike).amax(-1, keepdim=True)
        counted = alike & (columns != newest)
        return (similar * counted).mean(1).softmax(-1)
