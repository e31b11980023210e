"""What later tokens would lose without a token: how much a head's output changes when one is deleted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sgl_dynts.training.attention_rows import Attended, row_chunks

LEAST_REST = 1e-6
"""Of attention to other tokens; float64 cannot tell what a head loses that reads less of them."""


@contextmanager
def entering_sizes(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Give a list to which each layer, as it begins, adds the sizes of the states that enter it.

    They are [s] float32, and the newest is of the layer that runs.
    """
    sizes: list[Tensor] = []

    def note(_layer: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        sizes.append(states[0].float().norm(dim=-1))

    base: Any = model.base_model
    layers = getattr(base, "language_model", base).layers
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


def deletion_effects(attended: Attended, sizes: Tensor, first: int, last: int, distance: int) -> Tensor:
    """Return what tokens lose in one layer, for each token that they read: [s] float32.

    Without token j a head turns to the rest of what it reads, so that its output o changes by
    a / (1 - a) * (o - v_j), a being the attention to j. That goes through the output weights W, and
    counts by its square as a share of the state that it is added to:
    sum over heads and rows of (a / (1 - a) * |W (o - v_j)| / |state|)^2.

    A norm between W and the sum is not seen, so that layers of models that have one (Gemma, Olmo 3) weigh
    as much as W makes them.

    Sizes are taken by W'W of each head, so that the largest intermediates are [heads, rows, s], with at
    most ROWS_AT_ONCE rows. They are float64: where a head reads little but j, o and v_j are almost the
    same.

    Args:
        attended: of the layer.
        sizes: [s] float32, of the states that enter the layer.
        first: of the tokens that lose.
        last: of them, not counted.
        distance: tokens this near to one, and the one itself, it loses nothing by.

    Raises:
        ValueError: W does not take the heads' outputs as they are.
    """
    values, gram = _values_by_head(attended), _output_gram(attended)
    of_values = ((values @ gram) * values).sum(-1)[:, None]
    total = torch.zeros_like(sizes)
    for rows in row_chunks(first, last):
        attention = attended.head_rows(rows, torch.float64)
        outputs = attention @ values
        seen = outputs @ gram
        of_outputs = (seen * outputs).sum(-1, keepdim=True)
        squares = of_outputs + of_values - 2 * seen @ values.transpose(1, 2)
        shares = attention / (1 - attention).clamp_min(LEAST_REST)
        effects = shares.square() * squares.clamp_min(0) / sizes[rows.start : rows.stop, None].square()
        total += effects.tril(rows.start - distance - 1).sum((0, 1)).float()
    return total


def _values_by_head(attended: Attended) -> Tensor:
    """[heads, s, head_dim] float64: the values that each query head reads."""
    group = attended.query.shape[1] // attended.value.shape[1]
    return attended.value[0].double().repeat_interleave(group, 0)


def _output_gram(attended: Attended) -> Tensor:
    """[heads, value_dim, value_dim] float64: W'W of each head's part of the output weights."""
    weights = _output_weights(attended).double()
    by_head = weights.unflatten(1, (attended.query.shape[1], -1)).transpose(0, 1)
    return by_head.transpose(1, 2) @ by_head


def _output_weights(attended: Attended) -> Tensor:
    """[d, heads * value_dim]: what the heads' outputs go through."""
    (heads, width), module = attended.query.shape[1::2], attended.module
    projection, queries = getattr(module, "o_proj", None), getattr(module, "q_proj", None)
    gated = queries is not None and queries.weight.shape[0] == 2 * heads * width
    if projection is None or gated:
        why = "gates what its heads give" if gated else "names no o_proj"
        raise ValueError(
            f"the attention {type(module).__name__} {why}, so that the target deletion cannot be "
            "computed; take another target"
        )
    return projection.weight
