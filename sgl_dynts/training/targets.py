"""What a predictor is trained on: how much later tokens read a token, from attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command names the kinds in its help, without torch
    from torch import Tensor

TARGET_KINDS = ("answer", "future", "gradient", "deletion")
WITH_DISTANCE = ("future", "deletion")
"""Those that count readers further away than a distance alone."""


def far_attention(attention: Tensor, distance: int, first_row: int = 0) -> Tensor:
    """Return the most that any later token further than `distance` away reads each token.

    A token read once, much later, scores as high as one read often; what is read only nearby, where
    the local window covers it, scores near 0. The last ``distance + 1`` tokens score 0 by definition.

    Args:
        attention: [..., rows, s], what tokens `first_row` and following read, a mean over heads and
            layers. With all rows of a sequence at once, rows is s.
        distance: tokens; roughly the local window or more.
        first_row: index of the token whose row is the first.

    Returns:
        [..., s].
    """
    return attention.tril(first_row - distance - 1).amax(dim=-2)
