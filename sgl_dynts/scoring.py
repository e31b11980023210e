"""Scores of one forward's tokens, from their hidden states into the pool.

On CUDA the chain is two matrix products, Softplus in place between them, and one kernel for the rest: the
last layer yields one number per token, which is no work for a matrix product. Every launch can be
captured in a CUDA graph and waits for nothing.
"""

import torch

from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.score_pool import HIGHEST_SCORE, ScorePool


def write_scores(
    predictor: ImportancePredictor, hidden: torch.Tensor, slots: torch.Tensor, pool: ScorePool
) -> None:
    """Score tokens and store the scores where their KV is.

    Args:
        predictor: on the pool's device.
        hidden: [num_tokens, hidden_size], any float dtype; the state after the final norm.
        slots: [num_tokens] integer slots written by this forward; padding repeats slot 0.
        pool: updated in place.
    """
    if not hidden.is_cuda:
        pool.write(slots, predictor(hidden))
    elif hidden.shape[0]:  # an idle forward has no tokens, and an empty grid is no launch
        write_with_kernels(predictor, hidden, slots, pool)


def write_with_kernels(
    predictor: ImportancePredictor, hidden: torch.Tensor, slots: torch.Tensor, pool: ScorePool
) -> None:
    """Do :func:`write_scores` for at least one token with the kernels."""
    from sgl_dynts import kernels  # only where there is a GPU: nothing else needs triton

    first, second, last = predictor.parameters()
    inner = hidden.to(first.dtype) @ first.T
    kernels.softplus_in_place(inner)
    kernels.score_tail(inner @ second.T, last, slots, pool.scores, HIGHEST_SCORE)


def write_with_torch(
    predictor: ImportancePredictor, hidden: torch.Tensor, slots: torch.Tensor, pool: ScorePool
) -> None:
    """Do what the kernels do in torch: like the predictor, but float32 from the second product on."""
    first, second, last = predictor.parameters()
    inner = torch.nn.functional.softplus(hidden.to(first.dtype) @ first.T)
    pool.write(slots, score_tail(inner @ second.T, last))


def score_tail(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Finish scoring in float32.

    Args:
        states: [num_tokens, h2], what the second layer gives before its Softplus.
        weight: [1, h2], the last layer.

    Returns:
        scores: [num_tokens] float32.
    """
    last = torch.nn.functional.softplus(states.float()) @ weight[0].float()
    return torch.nn.functional.softplus(last)
