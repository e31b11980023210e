"""The importance predictor: the same class is trained and served."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


class ImportancePredictor(nn.Module):
    """Three bias-free linear layers, each followed by Softplus: d -> h1 -> h2 -> 1.

    Source: the DynTS paper, "Importance Predictor"; sizes are read from the weights, since the paper
    and its released checkpoints differ.
    """

    def __init__(self, hidden_size: int, inner_sizes: Sequence[int]) -> None:
        """Build an untrained predictor.

        Args:
            hidden_size: d, width of the model's last hidden state.
            inner_sizes: h1 and h2.
        """
        super().__init__()
        sizes = [hidden_size, *inner_sizes, 1]
        self.layers = nn.ModuleList(
            nn.Linear(wide, narrow, bias=False) for wide, narrow in pairwise(sizes)
        )

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states it reads."""
        return next(self.parameters()).shape[1]

    @property
    def inner_sizes(self) -> tuple[int, ...]:
        """Widths of the hidden layers, h1 and h2."""
        return tuple(weight.shape[0] for weight in list(self.parameters())[:-1])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Score tokens.

        Args:
            hidden: [..., hidden_size], any float dtype; the state after the final norm.

        Returns:
            scores: [...] float32, at least 0; higher means keep.
        """
        state = hidden.to(next(self.parameters()).dtype)
        for layer in self.layers:
            state = nn.functional.softplus(layer(state))
        return state.squeeze(-1).float()
