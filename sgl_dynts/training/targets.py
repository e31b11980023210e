"""What a predictor is trained on: how much later tokens read a token."""

from torch import Tensor


def far_attention(attention: Tensor, distance: int) -> Tensor:
    """Return the most that any later token further than `distance` away reads each token.

    A token read once, much later, scores as high as one read often; what is read only nearby, where
    the local window covers it, scores near 0. The last ``distance + 1`` tokens score 0 by definition.

    Args:
        attention: [..., s, s], row i is what token i reads, a mean over heads and layers.
        distance: tokens; roughly the local window or more.

    Returns:
        [..., s].
    """
    return attention.tril(-distance - 1).amax(dim=-2)
