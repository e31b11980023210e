"""How the pool is filled: which requests to compact early, and what admission reserves for one.

A window can be pulled down at any time to what a compaction leaves (T in the paper's letters), so a
pool is full only when all its windows are that short. Everything here is arithmetic on token counts.
"""

from collections import deque
from typing import NamedTuple

import numpy as np

from sgl_dynts.due import is_due

STAGGER_SHARE = 8
"""A compaction moves forward by at most this part (1/8) of a period to spread the batch's compactions."""
QUEUE_SHARE = 4
"""For a waiting request, only windows that give at least 1/4 of their period are compacted."""
ALL = 1 << 40
"""More tokens than any pool has."""
WAITING_SHARE = 2
"""While requests wait for their reservation, windows that give 1/2 of their period are compacted: shorter
windows are room for more requests, and less to read in each step."""
STEP_SHARE = 32
"""To avoid a retraction, at least 1/32: no request compacts more than 32 times in a period."""


class Demand(NamedTuple):
    """What the pool must provide, in slots.

    ``free`` counts slots that are free or that the prefix cache can evict; ``step`` those that the
    next forward of the running requests takes; ``queue`` those that the first waiting request needs
    besides, if its reservation fits and only room is lacking. ``waiting`` tells whether requests wait
    that would run if the pool held more.
    """

    free: int
    step: int
    queue: int = 0
    waiting: bool = False

    @property
    def is_tight(self) -> bool:
        """Whether what is free does not exceed what is needed."""
        return self.step + self.queue >= self.free


def choose_compactions(
    give: np.ndarray, remaining: np.ndarray, period: np.ndarray, demand: Demand, rate: int
) -> np.ndarray:
    """Choose which running requests to compact in this iteration.

    Compact what is due; spread what becomes due together; when the next step does not fit, those that
    give most, until it does; and while requests wait a few more, if they give enough.

    Args:
        give: [n] int64, tokens that a compaction now frees; below 1 for requests that cannot.
        remaining: [n] int64, tokens until a compaction is due.
        period: [n] int64, at least 1: tokens between two compactions.
        demand: what is needed.
        rate: compactions per iteration that spread the load, see :func:`stagger_rate`.

    Returns:
        [m] int64 indices of the chosen requests, ascending.
    """
    chosen = is_due(remaining)
    _choose_urgent(chosen, remaining, period, rate)
    short = demand.step - demand.free - int(give[chosen].sum())
    if short > 0:
        short -= _choose_largest(chosen, give, period, STEP_SHARE, short, len(give))
    if demand.queue > 0 and short + demand.queue > 0:
        _choose_largest(chosen, give, period, QUEUE_SHARE, short + demand.queue, rate)
    if demand.waiting:
        _choose_largest(chosen, give, period, WAITING_SHARE, ALL, rate)
    return np.flatnonzero(chosen)


def stagger_rate(period: np.ndarray) -> int:
    """Compactions per iteration that serve every request within an eighth of its period."""
    return max(1, int(np.ceil((STAGGER_SHARE / period).sum())))


def are_near_due(remaining: np.ndarray, period: np.ndarray) -> np.ndarray:
    """[n] bool: requests that are not due yet and whose compaction may be moved forward."""
    return ~is_due(remaining) & (remaining <= period // STAGGER_SHARE)


def _choose_urgent(chosen: np.ndarray, remaining: np.ndarray, period: np.ndarray, rate: int) -> None:
    """Add the most urgent requests if ``rate`` per iteration would be too slow for those near due."""
    near = np.flatnonzero(are_near_due(remaining, period))
    num_chosen = int(np.count_nonzero(chosen))
    if is_crowded(remaining[near], rate, num_chosen):
        order = near[np.argsort(remaining[near], kind="stable")]
        chosen[order[: max(0, rate - num_chosen)]] = True


def is_crowded(remaining: np.ndarray, rate: int, num_chosen: int = 0) -> bool:
    """Whether some of these requests would be compacted late, one after the other at this rate.

    Args:
        remaining: [n] int64, tokens until each is due.
        rate: compactions per iteration.
        num_chosen: compactions that come first.
    """
    queued = np.arange(num_chosen + 1, num_chosen + len(remaining) + 1)
    return bool((queued > rate * np.sort(remaining)).any())


def rounds_until_half(give: np.ndarray, period: np.ndarray) -> int:
    """For how many more rounds no window can give half its period; less than 0 if one can now.

    Arguments as in :func:`choose_compactions`; a round adds at most one token to each of ``give``.
    """
    return int((-(-period // WAITING_SHARE) - give).min()) - 1


def calm_rounds(remaining: np.ndarray, rate: int) -> int:
    """For how many more rounds no request can become due, nor any be crowded at this rate.

    A round takes at most one token from each of ``remaining``, of which there is at least one. Less than
    0 if some are due or crowded now; arguments as in :func:`is_crowded`.
    """
    queued = np.arange(1, len(remaining) + 1)
    slack = np.sort(remaining) - -(-queued // rate)
    return int(slack.min())


def _choose_largest(
    chosen: np.ndarray, give: np.ndarray, period: np.ndarray, share: int, short: int, most: int
) -> int:
    """Add the requests that give most until ``short`` is covered; return the tokens they give."""
    able = np.flatnonzero(~chosen & (give > 0) & (give * share >= period))
    order = able[np.argsort(-give[able], kind="stable")]
    covered = np.cumsum(give[order])
    count = min(most, int(np.searchsorted(covered, short)) + 1, len(order))
    chosen[order[:count]] = True
    return int(covered[count - 1]) if count else 0


def room_beyond_retained(period: np.ndarray | int, answer: np.ndarray | int, elastic: bool) -> np.ndarray:
    """Tokens to reserve for a request beyond what a compaction leaves of it.

    While requests wait, windows are pulled back after half a period, so a quarter of it is their mean;
    early compaction keeps the sum of all windows within it at any time. Answers may take that room
    too, as long as a sixteenth of the period is left to thinking; compactions are then more frequent.
    Without early compaction a whole period and the answer are needed.

    Args:
        period: tokens between two compactions.
        answer: answer tokens that are still expected.
        elastic: whether compactions may run early.
    """
    if not elastic:
        return np.asarray(period + answer)
    return np.maximum(-(-period // (2 * WAITING_SHARE)), answer + -(-period // 16))


class AnswerReserve:
    """How many answer tokens to expect of a request, learnt from those that finished.

    The 95th percentile of the last 256; while fewer than 16 are known, the largest of them and of the
    first guess.
    """

    PERCENTILE = 95
    ENOUGH = 16

    def __init__(self, first_guess: int) -> None:
        self._first_guess = first_guess
        self._seen: deque[int] = deque(maxlen=256)
        self.tokens = first_guess

    def observe(self, answer_len: int) -> None:
        """Learn from a finished request how long its answer was, in tokens."""
        self._seen.append(answer_len)
        if len(self._seen) < self.ENOUGH:
            self.tokens = max(self._first_guess, *self._seen)
        else:
            self.tokens = int(np.ceil(np.percentile(self._seen, self.PERCENTILE)))
