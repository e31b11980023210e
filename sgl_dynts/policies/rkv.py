"""Importance less redundancy."""

from dataclasses import dataclass

import torch

from sgl_dynts.policies.attention import LayerView
from sgl_dynts.policies.base import Observing, Sets
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
        importance = _pooled(seen, self.kernel)
        return (
            self.weight * importance - (1 - self.weight) * redundancy(view.keys[chosen], self.threshold)
        ).mean(0)


@register
@dataclass(frozen=True)
class RKVPerHead(Observing):
    """R-KV with a set of tokens in every KV head, as in its paper.

    Of the queries that share a KV head the largest logit counts, and attention is that over all that
    is older than the newest eight tokens, as in its published code. Budget and buffer differ, as with
    `rkv`.
    """

    name = "rkv_per_head"
    color = "#d08c60"
    keeps = "0.1 importance - 0.9 redundancy"
    paper = "R-KV, arXiv 2505.24133"
    differs = "no buffer of its own; only thinking is judged redundant"
    sets = Sets.PER_HEAD
    weight: float = 0.1
    num_queries: int = 8
    kernel: int = 7
    threshold: float = 0.5

    def score_layer(self, view: LayerView, chosen: slice) -> torch.Tensor:
        """Return [kv_heads, n], Z of every head."""
        newest = LayerView(view.queries[-self.num_queries :], view.keys, view.scaling)
        older = newest.logits().amax(1)[:, :, : -len(newest.queries)]
        importance = _pooled(older.softmax(-1).mean(1)[:, chosen], self.kernel)
        return self.weight * importance - (1 - self.weight) * redundancy(
            view.keys[chosen], self.threshold
        )


def redundancy(keys: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return [kv_heads, n] for keys [n, kv_heads, head_dim], each head's sum 1: how much a key repeats.

    A softmax of the mean cosine similarity to other keys, of those above the threshold.
    """
    unit = torch.nn.functional.normalize(keys.float(), dim=-1).transpose(0, 1)
    similar = unit @ unit.transpose(1, 2)
    alike = (similar > threshold) & ~torch.eye(len(keys), dtype=torch.bool, device=keys.device)
    columns = torch.arange(len(keys), device=keys.device)
    newest = (columns * alike).amax(-1, keepdim=True)
    counted = alike & (columns != newest)
    return (similar * counted).mean(1).softmax(-1)


def _pooled(importance: torch.Tensor, kernel: int) -> torch.Tensor:
    return torch.nn.functional.max_pool1d(importance, kernel, 1, kernel // 2)
