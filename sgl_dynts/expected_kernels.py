"""Triton kernel that judges all held tokens of a request; twin: ``expected_attention.expected_output``.

Imported only where tensors live on a GPU: nothing else needs triton. One launch serves all layers and
heads, reads K and V where they lie, and one compilation serves requests of every length.
"""

# A kernel's body is Triton's language, which no type checker of Python knows.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportArgumentType=false
# Triton's compile-time arguments are written in capitals.
# ruff: noqa: N803

import torch
import triton
import triton.language as tl

LEAST_SIDE = 16
"""Of a product on tensor cores."""
MOST_TOKENS = 128
"""That a program judges; LEAST_SIDE where half a head is more than 64 numbers: registers hold them."""

_NUMBERS = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.float8_e5m2: tl.float8e5,
}


@triton.jit
def _pair_places(pairs, HALF: tl.constexpr, TURNED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Places in a head of the two numbers of each pair; those that no rotation turns are paired too."""
    rest = pairs + TURNED
    if INTERLEAVED:
        one, two = 2 * pairs, 2 * pairs + 1
    else:
        one, two = pairs, pairs + TURNED
    if TURNED < HALF:
        one = tl.where(pairs < TURNED, one, rest)
        two = tl.where(pairs < TURNED, two, rest + HALF - TURNED)
    return one, two


@triton.jit(do_not_specialize=["num_held"], do_not_specialize_on_alignment=["slots"])
def expected_logits_kernel(
    slots,
    tensors,
    scales,
    turns,
    mean,
    spread,
    largest,
    logits,
    sizes,
    num_held,
    group,
    NUMBER: tl.constexpr,
    HALF: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    """Judge some tokens of one KV head in one layer; see :func:`expected_logits`."""
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    kv_head, layer = tl.program_id(1), tl.program_id(2)
    head = layer * tl.num_programs(1) + kv_head
    inside = tokens < num_held
    slot = tl.load(slots + tokens, mask=inside, other=0)
    places = tensors + layer * 5
    keys = tl.load(places).to(tl.pointer_type(NUMBER)) + kv_head * 2 * HALF
    values = tl.load(places + 1).to(tl.pointer_type(NUMBER)) + kv_head * VALUE_DIM
    key_rows = keys + slot[:, None] * tl.load(places + 2)
    value_rows = values + slot[:, None] * tl.load(places + 3)
    turn = turns + tl.load(places + 4) * 2 * TURNED
    scaling = tl.load(scales + layer * 3)
    key_scale = tl.load(scales + layer * 3 + 1)
    value_scale = tl.load(scales + layer * 3 + 2)

    columns = tl.arange(0, BLOCK_VALUE)
    there = inside[:, None] & (columns < VALUE_DIM)[None, :]
    value = tl.load(value_rows + columns[None, :], mask=there, other=0.0).to(tl.float32)
    size = tl.sqrt(tl.sum(value * value, 1)) * value_scale
    tl.store(sizes + head * num_held + tokens, size, mask=inside)

    pairs = tl.arange(0, BLOCK_PAIRS)
    one, two = _pair_places(pairs, HALF, TURNED, INTERLEAVED)
    there = inside[:, None] & (pairs < HALF)[None, :]
    first = tl.load(key_rows + one[None, :], mask=there, other=0.0).to(tl.float32)
    second = tl.load(key_rows + two[None, :], mask=there, other=0.0).to(tl.float32)
    cos = tl.load(turn + pairs, mask=pairs < TURNED, other=1.0)[None, :]
    sin = tl.load(turn + TURNED + pairs, mask=pairs < TURNED, other=0.0)[None, :]
    factor = key_scale * scaling
    back_one = (first * cos + second * sin) * factor
    back_two = (second * cos - first * sin) * factor
    half_one, half_two = back_one.to(tl.float16), back_two.to(tl.float16)

    for member in range(group):
        query = head * group + member
        of_query = mean + query * 2 * BLOCK_PAIRS + pairs
        logit = back_one * tl.load(of_query)[None, :]
        logit += back_two * tl.load(of_query + BLOCK_PAIRS)[None, :]
        block = spread + query * 3 * BLOCK_PAIRS * BLOCK_PAIRS
        block += pairs[:, None] * BLOCK_PAIRS + pairs[None, :]
        by_one = tl.dot(half_one, tl.load(block))
        by_one = tl.dot(half_two, tl.load(block + BLOCK_PAIRS * BLOCK_PAIRS), by_one)
        by_two = tl.dot(half_two, tl.load(block + 2 * BLOCK_PAIRS * BLOCK_PAIRS))
        logit += (by_one * back_one + by_two * back_two) * tl.load(largest + query)
        tl.store(logits + query * num_held + tokens, tl.sum(logit, 1), mask=inside)


def block_pairs(half: int) -> int:
    """Return the side of the blocks in which ``mean`` and ``spread`` hold a head of ``2 * half``."""
    return max(LEAST_SIDE, triton.next_power_of_2(half))


def expected_logits(
    slots: torch.Tensor,
    tensors: torch.Tensor,
    scales: torch.Tensor,
    turns: torch.Tensor,
    mean: torch.Tensor,
    spread: torch.Tensor,
    largest: torch.Tensor,
    dtype: torch.dtype,
    interleaved: bool,
    head_dims: tuple[int, int],
    kv_heads: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logit that every held key can expect, and the size of every value, in one launch.

    A program turns the keys of some tokens back by the mean rotation, then goes through the queries that
    share their head. A head's numbers come in pairs, the two that a rotation turns together; numbers that
    none turns are paired as well. So the quadratic form of a covariance takes three products of half a
    head's side instead of four. Their factors are float16, rounded to 11 bits; all else is float32.

    Costs: K and V of what is held, read once; a covariance per program and query, from the cache; with a
    group of 7 and heads of 128, some 86,000 multiplications a token, layer and KV head.

    Args:
        slots: [held] int64 contiguous.
        tensors: [layers, 5] int64 contiguous: addresses of K and V, numbers from one slot to the next in
            each, which of ``turns``.
        scales: [layers, 3] float32 contiguous: of logits, of stored keys, of stored values.
        turns: [rotations, 2, turned pairs] float32 contiguous: mean cosines, then mean sines.
        mean: [layers, heads, 2, side] float32 contiguous: first numbers of the pairs, then the others;
            0 beyond half a head, with side as of :func:`block_pairs`.
        spread: [layers, heads, 3, side, side] float16 contiguous, to be multiplied by ``largest``: half
            the covariance of the first numbers with themselves, the others' with the first, half the
            others' with themselves.
        largest: [layers, heads] float32 contiguous.
        dtype: of K and V.
        interleaved: whether neighbours are a pair.
        head_dims: numbers of a head in K, even, and in V.
        kv_heads: of each layer; a slot's heads lie together.

    Returns:
        [layers, kv_heads, group, held] and [layers, kv_heads, held] float32.
    """
    (num_layers, num_heads), num_held = mean.shape[:2], len(slots)
    half, side = head_dims[0] // 2, mean.shape[-1]
    group = num_heads // kv_heads
    block_tokens = MOST_TOKENS if side <= MOST_TOKENS // 2 else LEAST_SIDE
    logits = mean.new_empty(num_layers, kv_heads, group, num_held)
    sizes = mean.new_empty(num_layers, kv_heads, num_held)
    expected_logits_kernel[(triton.cdiv(num_held, block_tokens), kv_heads, num_layers)](
        slots,
        tensors,
        scales,
        turns,
        mean,
        spread,
        largest,
        logits,
        sizes,
        num_held,
        group,
        NUMBER=_NUMBERS[dtype],
        HALF=half,
        TURNED=turns.shape[-1],
        INTERLEAVED=interleaved,
        VALUE_DIM=head_dims[1],
        BLOCK_TOKENS=block_tokens,
        BLOCK_PAIRS=side,
        BLOCK_VALUE=triton.next_power_of_2(head_dims[1]),
        num_warps=8,
        num_stages=1,
    )
    return logits, sizes
