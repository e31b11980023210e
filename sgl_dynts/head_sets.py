"""A set of tokens per KV head, in rows that stay dense: whose K and V lie in a slot differs by head.

After a compaction a row names the slots of as many tokens as every head keeps. Attention does not mind
in which slot a token lies, and its rotation is in its K. So each head packs the tokens that it keeps into
the slots that the row goes on to name, the oldest first; tokens that are never dropped stay where they
are. Which slots those are follows from positions alone, so that all ranks free the same ones.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch

from sgl_dynts.selection import select_kept
from sgl_dynts.transfer import to_device

SCORES_AT_ONCE = 1 << 18
"""Scores that are sorted at a time, with some 40 bytes each."""


@dataclass(frozen=True)
class HeadMoves:
    """Where the heads' tokens go at one request's compaction; n candidates, of which k stay.

    In every layer and head the token at place ``sources[layer, head, i]`` goes to the place
    ``targets[i]``, for all i at once. A source never stands before its target, and what follows from
    the one equal to its target stays.
    """

    slots: torch.Tensor
    """[n] int64, the candidates' slots; places are numbered as here."""
    targets: torch.Tensor
    """[k] int64."""
    sources: torch.Tensor
    """[layers, heads, k] int64."""


@dataclass(frozen=True)
class HeadGroup:
    """Tensors that one launch serves: a head's token has the same number of equally wide words in all."""

    word_bytes: int
    head_words: int
    tensors: torch.Tensor
    """[3, num_tensors] int64: address, words from one slot to the next, layer."""


@dataclass(frozen=True)
class HeadBuffers:
    """What holds something of every token and head, such as K and V; made once, for all compactions."""

    layers: tuple[tuple[torch.Tensor, ...], ...]
    """[num_slots, heads, ...] of any dtype, of each layer; a slot's heads lie together, one by one."""
    groups: tuple[HeadGroup, ...]

    @classmethod
    def of(cls, layers: Sequence[Sequence[torch.Tensor]]) -> "HeadBuffers":
        """Look where each tensor lies; they must stay there."""
        rows = defaultdict(list)
        for layer, tensors in enumerate(layers):
            for tensor in tensors:
                assert tensor[0].is_contiguous(), (tensor.shape, tensor.stride())
                head_bytes, slot_bytes = tensor[0, 0].nbytes, tensor.stride(0) * tensor.element_size()
                word = gcd(8, tensor.data_ptr(), head_bytes, slot_bytes)
                rows[word, head_bytes // word].append((tensor.data_ptr(), slot_bytes // word, layer))
        device = layers[0][0].device
        groups = [
            HeadGroup(word, words, to_device(torch.tensor(each).T.contiguous(), device))
            for (word, words), each in rows.items()
        ]
        return cls(tuple(map(tuple, layers)), tuple(groups))

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and heads."""
        return len(self.layers), self.layers[0][0].shape[1]


def rank_slots(fixed: torch.Tensor) -> torch.Tensor:
    """Score candidates' slots so that a compaction keeps the oldest, besides those that never drop.

    Args:
        fixed: [n] bool, candidates that are never dropped.

    Returns:
        [n] float32, what the score pool is to hold for this compaction; exact up to 2**24 candidates.
    """
    order = torch.arange(len(fixed), 0, -1, device=fixed.device, dtype=torch.float32)
    return order.masked_fill(fixed, torch.inf)


def plan_moves(
    scores: torch.Tensor, fixed: torch.Tensor, slots: torch.Tensor, num_kept: int
) -> HeadMoves:
    """Choose the best-scored candidates of every layer and head; no host synchronisation.

    Args:
        scores: [layers, heads, n] float32, older candidates first; equal scores go to the older.
        fixed: [n] bool, candidates that every head keeps, where they are; at most ``num_kept``.
        slots: [n] int64.
        num_kept: k, at most n.
    """
    layers, heads, num = scores.shape
    places = torch.arange(num, device=scores.device)
    # Those that stay where they are come last of both, so that each is its own target.
    order = places + num * fixed
    targets = _in_order(rank_slots(fixed)[None], order, num_kept)[0]
    judged = scores.masked_fill(fixed, torch.inf).view(layers * heads, num)
    some = judged.split(max(1, SCORES_AT_ONCE // num))
    sources = torch.cat([_in_order(part, order, num_kept) for part in some])
    return HeadMoves(slots, targets, sources.view(layers, heads, num_kept))


def _in_order(scores: torch.Tensor, order: torch.Tensor, num_kept: int) -> torch.Tensor:
    """[rows, num_kept] int64 places of each row's best scores, sorted by ``order`` [n] int64."""
    num_rows, num = scores.shape
    sizes = scores.new_full((num_rows,), num), scores.new_full((num_rows,), num_kept)
    kept = select_kept(scores, *sizes)
    return order.masked_fill(~kept, 2 * num).sort(-1).values[:, :num_kept] % num


def move_heads(moves: HeadMoves, buffers: HeadBuffers) -> None:
    """Carry moves out in place, on a GPU in one launch per group and without waiting for it."""
    assert moves.sources.shape[:2] == buffers.shape, (moves.sources.shape, buffers.shape)
    if moves.slots.is_cuda:
        move_with_kernels(moves, buffers.groups)
    else:
        move_with_torch(moves, buffers.layers)


def move_with_kernels(moves: HeadMoves, groups: Sequence[HeadGroup]) -> None:
    """Do :func:`move_heads` in one launch per group, with no memory but registers."""
    from sgl_dynts import head_kernels  # only where there is a GPU: nothing else needs triton

    for group in groups:
        head_kernels.move_heads(
            *(moves.slots, moves.targets, moves.sources),
            *(group.tensors, group.word_bytes, group.head_words),
        )


def move_with_torch(moves: HeadMoves, buffers: Sequence[Sequence[torch.Tensor]]) -> None:
    """Carry moves out, layer by layer: the kernel's twin.

    Args:
        moves: of one request.
        buffers: of each layer, tensors [num_slots, heads, ...] that hold something of every token and
            head, such as K and V; changed in place. At most ``k`` tokens of one are copied at a time.
    """
    targets = moves.slots[moves.targets]
    for sources, tensors in zip(moves.slots[moves.sources], buffers, strict=True):
        for tensor in map(_movable, tensors):
            heads = torch.arange(len(sources), device=sources.device)[:, None]
            tensor[targets[None], heads] = tensor[sources, heads]


def _movable(tensor: torch.Tensor) -> torch.Tensor:
    """See numbers of one byte as integers: not every device indexes the small float dtypes."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
