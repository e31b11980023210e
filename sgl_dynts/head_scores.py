"""What the predictor said of each token, for requests with a set of tokens per KV head.

A score is given once, by the slot that a token is born in. Where each head keeps tokens of its own, a
slot holds another token in every head, so the scores move from slot to slot as K and V do.
"""

from collections.abc import Sequence

import torch


class HeadScores:
    """A score of every slot, layer and KV head.

    ``layers`` are [num_slots, kv_heads] float32 each. They hold what was noted of a token from its first
    compaction on; until then its score is the score pool's.
    """

    def __init__(self, num_slots: int, heads: Sequence[int], device: torch.device | str) -> None:
        """Make room.

        Args:
            num_slots: of the KV pool.
            heads: KV heads of each layer.
            device: of the pool.
        """
        self.layers = [torch.zeros(num_slots, num, device=device) for num in heads]

    @property
    def bytes_per_token(self) -> int:
        """What one token takes."""
        return sum(layer[0].nbytes for layer in self.layers)

    def note(self, slots: torch.Tensor, scores: torch.Tensor) -> None:
        """Take over what the score pool says of tokens that no compaction has judged yet.

        Args:
            slots: [n] int64.
            scores: [n] float32.
        """
        for layer in self.layers:
            layer[slots] = scores[:, None].expand(-1, layer.shape[1])

    def noted(self, slots: torch.Tensor) -> torch.Tensor:
        """Return [n] float32 as noted, for tokens that nothing has moved yet."""
        return self.layers[0][slots, 0]

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        """Return [layers, kv_heads, n] float32, of the tokens that each head has in these slots."""
        return torch.stack([layer[slots].T for layer in self.layers])

    def write(self, slots: torch.Tensor, scores: torch.Tensor) -> None:
        """Put back what :meth:`read` gave."""
        for layer, some in zip(self.layers, scores, strict=True):
            layer[slots] = some.T.to(layer.device)
