"""Triton kernels of a compaction and of scoring, each beside the name of its torch twin.

Imported only where tensors live on a GPU: nothing else needs triton. Work is done in blocks of a fixed
size, so registers and shared memory are bounded however long a window is, and no argument is specialised
on its value, so one compilation serves every size.
"""

# A kernel's body is Triton's language, which no type checker of Python knows.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportCallIssue=false

import torch
import triton
import triton.language as tl

BLOCK = 1024
"""Columns, or values, that a program looks at together."""
NUM_WARPS = 8
RADIX_BITS = 8
"""Bits of a score that one pass of the selection decides."""

_NAN_KEY = tl.constexpr(0xFFFFFFFF)
_SIGN = tl.constexpr(0x80000000)


@triton.jit
def order_key(scores):
    """Map float32 to uint32 in the order in which torch sorts: zeros equal, NaN above infinity."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    ascending = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.uint32, bitcast=True) ^ _SIGN
    return tl.where(scores != scores, _NAN_KEY, ascending).to(tl.uint32)


@triton.jit
def softplus(values):
    """Return log(1 + exp(x)) of float32 without overflow, and exact for very negative x.

    Source: W. Kahan's log1p by way of log(u) * e / (u - 1) with u = 1 + e rounded.
    """
    e = tl.exp(-tl.abs(values))
    u = 1.0 + e
    tail = tl.where(u == 1.0, e, tl.log(u) * e / tl.where(u == 1.0, 1.0, u - 1.0))
    return tl.maximum(values, 0.0) + tail


@triton.jit
def _candidate_keys(row_slots, scores, start, count, BLOCK: tl.constexpr):
    columns = start + tl.arange(0, BLOCK)
    inside = columns < count
    slots = tl.load(row_slots + columns, mask=inside, other=0).to(tl.int64)
    return order_key(tl.load(scores + slots, mask=inside, other=0.0)), inside


@triton.jit
def _count_digits(
    row_slots,
    scores,
    count,
    prefix,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count, by the digit at SHIFT, the candidates whose higher bits are those of ``prefix``."""
    counts = tl.zeros([1 << BITS], tl.int32)
    for start in range(0, count, BLOCK):
        keys, inside = _candidate_keys(row_slots, scores, start, count, BLOCK)
        # Two shifts, since the first pass compares no bit and a shift by 32 is undefined.
        same = inside & (((keys ^ prefix) >> SHIFT >> BITS) == 0)
        digits = ((keys >> SHIFT) & ((1 << BITS) - 1)).to(tl.int32)
        counts += tl.histogram(digits, 1 << BITS, mask=same)
    return counts


@triton.jit
def _threshold(row_slots, scores, count, kept, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Find the key of the last survivor, and how many candidates with just this key survive."""
    prefix = tl.zeros([], tl.uint32)
    ties = kept
    digits = tl.arange(0, 1 << BITS)
    for shift in tl.static_range(32 - BITS, -1, -BITS):
        counts = _count_digits(row_slots, scores, count, prefix, shift, BITS, BLOCK)
        at_least = tl.sum(counts) - tl.cumsum(counts, 0) + counts
        digit = tl.sum((at_least >= ties).to(tl.int32)) - 1
        ties -= tl.sum(tl.where(digits > digit, counts, 0))
        prefix |= digit.to(tl.uint32) << shift
    return prefix, ties


@triton.jit(do_not_specialize=["num_requests", "table_stride"])
def compact_rows_kernel(
    table,
    scores,
    dropped,
    sizes,
    freed,
    num_requests,
    table_stride,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compact one request per program; twin: ``compaction.apply_with_torch``.

    A row is packed in place from left to right: what a block writes stands at or before its own columns,
    which are read by then.
    """
    request = tl.program_id(0)
    row = tl.load(sizes + request)
    first = tl.load(sizes + num_requests + request)
    count = tl.load(sizes + 2 * num_requests + request).to(tl.int32)
    kept = tl.load(sizes + 3 * num_requests + request).to(tl.int32)
    local = tl.load(sizes + 4 * num_requests + request).to(tl.int32)
    freed_before = tl.load(sizes + 5 * num_requests + request)
    row_slots = table + row * table_stride + first

    threshold, ties = _threshold(row_slots, scores, count, kept, BITS, BLOCK)
    seen_ties = 0
    packed = 0
    for start in range(0, count + local, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < count + local
        slots = tl.load(row_slots + columns, mask=inside, other=0)
        keys, is_candidate = _candidate_keys(row_slots, scores, start, count, BLOCK)
        is_tie = is_candidate & (keys == threshold)
        tie_rank = seen_ties + tl.cumsum(is_tie.to(tl.int32), 0)
        wins = (is_candidate & (keys > threshold)) | (is_tie & (tie_rank <= ties))
        survives = wins | (inside & (columns >= count))
        rank = packed + tl.cumsum(survives.to(tl.int32), 0) - survives.to(tl.int32)
        tl.debug_barrier()  # every warp has read its columns before any warp writes over them
        tl.store(row_slots + rank, slots, mask=survives)
        tl.store(freed + freed_before + columns - rank, slots.to(tl.int64), mask=inside & ~survives)
        seen_ties += tl.sum(is_tie.to(tl.int32))
        packed += tl.sum(survives.to(tl.int32))
    for start in range(packed, count + local, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        tl.store(row_slots + columns, 0, mask=columns < count + local)
    tl.store(dropped + row, tl.load(dropped + row) + count - kept)


@triton.jit(do_not_specialize=["num_spans", "table_stride"])
def protect_spans_kernel(
    table,
    scores,
    spans,
    num_spans,
    table_stride,
    BLOCK: tl.constexpr,
):
    """Score the slots of one span of columns infinite; twin: ``ScorePool.protect``."""
    span = tl.program_id(0)
    row = tl.load(spans + span)
    first = tl.load(spans + num_spans + span)
    end = tl.load(spans + 2 * num_spans + span)
    for start in range(first, end, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < end
        slots = tl.load(table + row * table_stride + columns, mask=inside, other=0).to(tl.int64)
        tl.store(scores + slots, float("inf"), mask=inside)


@triton.jit(do_not_specialize=["num_values"])
def softplus_kernel(values, num_values, BLOCK: tl.constexpr):
    """Softplus in place, in float32 inside; twin: ``torch.nn.functional.softplus``."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < num_values
    value = tl.load(values + places, mask=inside, other=0.0)
    result = softplus(value.to(tl.float32)).to(value.dtype)
    tl.store(values + places, result, mask=inside)


@triton.jit(do_not_specialize=["width"], do_not_specialize_on_alignment=["slots"])
def score_tail_kernel(
    states,
    weight,
    slots,
    scores,
    width,
    HIGHEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Score one token per program from its last inner state; twin: ``scoring.score_tail``."""
    token = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        state = tl.load(states + token * width + columns, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
        total += softplus(state) * factor
    score = softplus(tl.sum(total))
    score = tl.where(score != score, 0.0, tl.minimum(tl.maximum(score, -HIGHEST), HIGHEST))
    tl.store(scores + tl.load(slots + token).to(tl.int64), score)


def compact_rows(
    table: torch.Tensor,
    scores: torch.Tensor,
    dropped: torch.Tensor,
    sizes: torch.Tensor,
    freed: torch.Tensor,
) -> None:
    """Rewrite all due rows in one launch.

    Args:
        table: [num_rows, max_len] int32, last dimension contiguous.
        scores: [num_slots] float32.
        dropped: [num_rows] int64.
        sizes: [6, num_requests] int64, as of ``CompactionPlan.sizes``; each row named once.
        freed: [sum of dropped] int64, written.
    """
    num_requests = sizes.shape[1]
    compact_rows_kernel[(num_requests,)](
        table,
        scores,
        dropped,
        sizes,
        freed,
        num_requests,
        table.stride(0),
        BITS=RADIX_BITS,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
    )


def protect_spans(table: torch.Tensor, scores: torch.Tensor, spans: torch.Tensor) -> None:
    """Make the tokens of some spans never drop, in one launch.

    Args:
        table: [num_rows, max_len] int32, last dimension contiguous.
        scores: [num_slots] float32.
        spans: [3, num_spans] int64: row, first column, column after the last.
    """
    num_spans = spans.shape[1]
    protect_spans_kernel[(num_spans,)](
        table, scores, spans, num_spans, table.stride(0), BLOCK=BLOCK, num_warps=NUM_WARPS
    )


def softplus_in_place(values: torch.Tensor) -> None:
    """Apply Softplus to a contiguous tensor of any float dtype."""
    grid = (triton.cdiv(values.numel(), BLOCK),)
    softplus_kernel[grid](values, values.numel(), BLOCK=BLOCK, num_warps=NUM_WARPS)


def score_tail(
    states: torch.Tensor,
    weight: torch.Tensor,
    slots: torch.Tensor,
    scores: torch.Tensor,
    highest: float,
) -> None:
    """Finish scoring: Softplus, last layer, Softplus, and write where the tokens' slots are.

    Args:
        states: [num_tokens, h2] contiguous, what the second layer gives before its Softplus.
        weight: [1, h2] contiguous, the last layer.
        slots: [num_tokens] integer.
        scores: [num_slots] float32, written; never more than ``highest``, 0 for NaN.
        highest: largest score that is stored.
    """
    score_tail_kernel[(states.shape[0],)](
        states,
        weight,
        slots,
        scores,
        states.shape[1],
        HIGHEST=highest,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
    )
