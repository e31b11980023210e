"""What one cell of the accuracy table is made of: replies in, numbers out; no server, no tensors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import fmean
from typing import Any

PAPERS_TARGET = "answer"
"""What the paper trains a predictor on; others are ours."""
LONGEST_LOOP = 128
LEAST_REPEATS = 3
Z_95 = 1.959964


@dataclass(frozen=True)
class Reply:
    """One generated text; lengths are tokens.

    ``answer`` is what is counted in a majority vote; ``mean_kv`` and ``peak_kv`` are the KV tokens held
    while it was generated. One that its grader could not judge is not called right.
    """

    is_right: bool
    answer: str
    output_len: int
    is_truncated: bool
    is_loop: bool
    mean_kv: float
    peak_kv: int
    is_judged: bool = True


def summarize(replies: Sequence[Sequence[Reply]], full_len: float | None) -> dict[str, Any]:
    """Reduce a cell's replies to its numbers.

    Args:
        replies: of every problem, its samples.
        full_len: mean output length of the same problems with a full cache; None: this is that cell.

    Returns:
        Plain values; ``correct`` counts the problems whose first sample is right.
    """
    firsts = [samples[0] for samples in replies]
    every = [reply for samples in replies for reply in samples]
    n, correct = len(replies), sum(reply.is_right for reply in firsts)
    mean_len = fmean(reply.output_len for reply in every)
    num_right = sum(reply.is_right for reply in every)
    numbers = {
        "n": n,
        "correct": correct,
        **interval_of(correct, n),
        "mean_kv_tokens": round(fmean(reply.mean_kv for reply in every), 1),
        "peak_kv_tokens": max(reply.peak_kv for reply in every),
        "mean_output_len": round(mean_len, 1),
        "length_inflation": round(mean_len / (full_len or mean_len), 4),
        "loop_rate": round(fmean(reply.is_loop for reply in every), 4),
        "truncation_rate": round(fmean(reply.is_truncated for reply in every), 4),
        "num_not_judged": sum(not reply.is_judged for reply in every),
        "tokens_per_solved": round(mean_len * len(every) / num_right, 1) if num_right else None,
    }
    return numbers | (_sampled(replies) if len(replies[0]) > 1 else {})


def _sampled(replies: Sequence[Sequence[Reply]]) -> dict[str, float]:
    k = len(replies[0])
    right = [sum(reply.is_right for reply in samples) for samples in replies]
    return {
        "pass_at_1": round(fmean(count / k for count in right), 4),
        f"pass_at_{k}": round(fmean(pass_at(k, k, count) for count in right), 4),
        f"maj_at_{k}": round(fmean(majority_is_right(samples) for samples in replies), 4),
    }


def pass_at(k: int, num_samples: int, num_right: int) -> float:
    """Return the unbiased chance that k of the samples hold a right one (arXiv 2107.03374)."""
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def majority_is_right(samples: Sequence[Reply]) -> bool:
    """Whether the most frequent answer is right; of equally frequent ones the first given counts."""
    answer, _count = Counter(reply.answer for reply in samples).most_common(1)[0]
    return next(reply.is_right for reply in samples if reply.answer == answer)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share."""
    share, z2 = correct / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def interval_of(correct: int, n: int) -> dict[str, float]:
    """Return the interval as results have it."""
    low, high = wilson_interval(correct, n)
    return {"wilson_low": round(low, 4), "wilson_high": round(high, 4)}


def ends_in_loop(tokens: Sequence[int]) -> bool:
    """Whether the output ends in a block of at most 128 tokens written at least three times over."""
    for size in range(1, min(LONGEST_LOOP, len(tokens) // LEAST_REPEATS) + 1):
        tail = tokens[-LEAST_REPEATS * size :]
        if tail[size:] == tail[:-size]:
            return True
    return False


def mean_held(
    prompt_len: int, output_len: int, compacted_at: Sequence[int], dropped_then: Sequence[int]
) -> float:
    """Return the mean number of KV tokens held over the forwards that wrote an output.

    The first forward holds the prompt, each later one a token more, less what was dropped before.

    Args:
        prompt_len: tokens of the prompt.
        output_len: generated tokens.
        compacted_at: tokens seen at each compaction, the one in computation included: the next forward
            is the first that holds less.
        dropped_then: tokens that each compaction dropped.
    """
    last = prompt_len + output_len - 1
    saved = sum(
        dropped * max(0, last - at) for at, dropped in zip(compacted_at, dropped_then, strict=True)
    )
    return (prompt_len + last) / 2 - saved / output_len
