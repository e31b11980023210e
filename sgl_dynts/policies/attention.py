"""What queries attend to, computed a second time: no kernel gives its attention out."""

from collections.abc import Callable
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

    def logits(self) -> torch.Tensor:
        """Return [kv_heads, group, w, held] float32, before the softmax; -inf for what comes later."""
        num, held = len(self.queries), len(self.keys)
        queries = self.queries.float().view(num, self.keys.shape[1], -1, self.keys.shape[2])
        logits = torch.einsum("wkgd,hkd->kgwh", queries, self.keys.float()) * self.scaling
        columns = torch.arange(held, device=logits.device)
        unseen = columns > columns[held - num :, None]
        return logits.masked_fill(unseen, -torch.inf)

    def attention(self) -> torch.Tensor:
        """Return [kv_heads, group, w, held] float32, what each query attends to; causal."""
        return self.logits().softmax(-1)

    def received(self) -> torch.Tensor:
        """Return [held] float32, what each key gets from all queries together, the mean over heads."""
        return self._received(lambda attention: attention.mean((0, 1)))

    def received_by_head(self) -> torch.Tensor:
        """Return [kv_heads, held] float32, as :meth:`received`, the mean over each KV head's queries."""
        return self._received(lambda attention: attention.mean(1))

    def _received(self, mean: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        before = len(self.keys) - len(self.queries)
        total = None
        for first in range(0, len(self.queries), QUERIES_AT_ONCE):
            queries = self.queries[first : first + QUERIES_AT_ONCE]
            seen = before + first + len(queries)
            part = mean(LayerView(queries, self.keys[:seen], self.scaling).attention().sum(2))
            if total is None:
                total = part.new_zeros(*part.shape[:-1], len(self.keys))
            total[..., :seen] += part
        assert total is not None, "a view has at least one query"
        return total


def received_from_newest(
    queries: torch.Tensor,
    keys: torch.Tensor,
    is_held: torch.Tensor,
    scaling: float,
    *,
    by_head: bool = False,
) -> torch.Tensor:
    """Return what each key gets from its request's newest query.

    Args:
        queries: [b, query_heads, head_dim], one of each request.
        keys: [b, width, kv_heads, head_dim], what the requests hold, padded to one width.
        is_held: [b, width] bool; what is padding gets 0.
        scaling: of the logits.
        by_head: whether each KV head's queries are averaged, instead of all.

    Returns:
        [b, width] float32, or [b, kv_heads, width] by head.
    """
    num, _, kv_heads, head_dim = keys.shape
    grouped = queries.float().view(num, kv_heads, -1, head_dim)
    logits = torch.einsum("bkgd,bhkd->bkgh", grouped, keys.float()) * scaling
    attention = logits.masked_fill(~is_held[:, None, None], -torch.inf).softmax(-1)
    return attention.mean(2) if by_head else attention.mean((1, 2))
