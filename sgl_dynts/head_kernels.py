"""Triton kernel that moves every head's tokens at a compaction; twin: ``head_sets.move_with_torch``.

Imported only where tensors live on a GPU: nothing else needs triton. Registers are all the memory that it
takes, a fixed number of them however much is moved, and one compilation serves every size.
"""

# A kernel's body is Triton's language, which no type checker of Python knows.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportArgumentType=false
# Triton's compile-time arguments are written in capitals.
# ruff: noqa: N803

import torch
import triton
import triton.language as tl

TILE_WORDS = 2048
"""Words that a program holds at a time."""
CHUNK_BYTES = 128
"""Most bytes of one head's token that one program moves: a line of the cache."""
NUM_WARPS = 8

_WORDS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}


@triton.jit(
    do_not_specialize=["num_kept", "num_tensors", "head_words"],
    do_not_specialize_on_alignment=["slots", "targets", "sources", "tensors"],
)
def move_heads_kernel(
    slots,
    targets,
    sources,
    tensors,
    num_kept,
    num_tensors,
    head_words,
    WORD: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    """Move some words of one head's tokens in one tensor; see :func:`move_heads`."""
    head = tl.program_id(0)
    tensor = tl.program_id(1)
    words = tl.program_id(2) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
    address = tl.load(tensors + tensor)
    slot_words = tl.load(tensors + num_tensors + tensor)
    layer = tl.load(tensors + 2 * num_tensors + tensor)
    first = address.to(tl.pointer_type(WORD)) + head * head_words + words
    head_sources = sources + (layer * tl.num_programs(0) + head) * num_kept
    for start in range(0, num_kept, BLOCK_TOKENS):
        moves = start + tl.arange(0, BLOCK_TOKENS)
        inside = moves < num_kept
        source = tl.load(head_sources + moves, mask=inside, other=0)
        target = tl.load(targets + moves, mask=inside, other=0)
        moved = inside & (source != target)
        old_slots = tl.load(slots + source, mask=moved, other=0)
        new_slots = tl.load(slots + target, mask=moved, other=0)
        mask = moved[:, None] & (words < head_words)[None, :]
        values = tl.load(first[None, :] + old_slots[:, None] * slot_words, mask=mask)
        tl.debug_barrier()  # every warp has read its sources before any warp writes over them
        tl.store(first[None, :] + new_slots[:, None] * slot_words, values, mask=mask)


def move_heads(
    slots: torch.Tensor,
    targets: torch.Tensor,
    sources: torch.Tensor,
    tensors: torch.Tensor,
    word_bytes: int,
    head_words: int,
) -> None:
    """Move the tokens of all layers and heads of like tensors, in place and in one launch.

    A program goes through the tokens of one head in one tensor from the first to the last, a tile at a
    time, and holds a tile before it writes it. What a tile writes no later one reads: among the tokens
    that move, both sources and targets ascend and no source stands before its target, so a later source
    stands behind all targets until then; where the others stand, nothing is written. Programs share the
    words of a head's token among them, CHUNK_BYTES each, and share no word.

    Costs: reads and writes of what moves, ``16 * k`` bytes per program of places, which the cache holds,
    and as much again of slots; what stays costs no more than its places. Programs of 28 layers, 4 heads,
    K and V and 256 bytes per head: 448, of about ``k / 128`` tiles each.

    Args:
        slots: [n] int64 contiguous, as of ``HeadMoves``.
        targets: [k] int64 contiguous.
        sources: [layers, heads, k] int64 contiguous.
        tensors: [3, num_tensors] int64 contiguous: address, words from one slot to the next, layer.
        word_bytes: 1, 2, 4 or 8; divides all addresses.
        head_words: words of one head's token, which lie together, a slot's heads one after the other.
    """
    block_words = min(triton.next_power_of_2(head_words), CHUNK_BYTES // word_bytes)
    num_heads, num_kept = sources.shape[1:]
    num_tensors = tensors.shape[1]
    move_heads_kernel[(num_heads, num_tensors, triton.cdiv(head_words, block_words))](
        slots,
        targets,
        sources,
        tensors,
        num_kept,
        num_tensors,
        head_words,
        WORD=_WORDS[word_bytes],
        BLOCK_TOKENS=TILE_WORDS // block_words,
        BLOCK_WORDS=block_words,
        num_warps=NUM_WARPS,
    )
