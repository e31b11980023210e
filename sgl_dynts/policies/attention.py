"""What queries attend to, computed a second time: no kernel gives its attention out."""

from dataclasses import dataclass

import torch

QUERIES_AT_ONCE = 64
"""Bounds what the attention of many queries takes at a time: query heads * 64 * held floats."""


@dataclass(frozen=True)
class LayerView:
    """One attention layer as the newest queries of a request see it.

    ``queries`` [w, query_heads, head_dim], older first, are those of the last w tokens of ``keys``
    [held, kv_heads, head_dim], which hold question, candidates and local window.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    scaling: float

    def attention(self) -> torch.Tensor:
        """Return [kv_heads, group, w, held] float32, what each query attends to; causal."""
        num, held = len(self.queries), len(self.keys)
        queries = self.queries.float().view(num, self.keys.shape[1], -1, self.keys.shape[2])
        logits = torch.einsum("wkgd,hkd->kgwh", queries, self.keys.float()) * self.scaling
        columns = torch.arange(held, device=logits.device)
        unseen = columns > columns[held - num :, None]
        return logits.masked_fill(unseen, -torch.inf).softmax(-1)

    def received(self) -> torch.Tensor:
        """Return [held] float32, what each key gets from all queries together, the mean over heads."""
        total = torch.zeros(len(self.keys), device=self.keys.device)
        before = len(self.keys) - len(self.queries)
        for first in range(0, len(self.queries), QUERIES_AT_ONCE):
            queries = self.queries[first : first + QUERIES_AT_ONCE]
            seen = before + first + len(queries)
            part = LayerView(queries, self.keys[:seen], self.scaling)
            total[:seen] += part.attention().sum(2).mean((0, 1))
        return total


def received_from_newest(
    queries: torch.Tensor, keys: torch.Tensor, is_held: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return [b, width] float32, what each key gets from its request's newest query, the mean over heads.

    Args:
        queries: [b, query_heads, head_dim], one of each request.
        keys: [b, width, kv_heads, head_dim], what the requests hold, padded to one width.
        is_held: [b, width] bool; what is padding gets 0.
        scaling: of the logits.
    """
    num, _, kv_heads, head_dim = keys.shape
    grouped = queries.float().view(num, kv_heads, -1, head_dim)
    logits = torch.einsum("bkgd,bhkd->bkgh", grouped, keys.float()) * scaling
    return logits.masked_fill(~is_held[:, None, None], -torch.inf).softmax(-1).mean((1, 2))
