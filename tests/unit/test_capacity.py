"""The policy: who is compacted now, and what admission reserves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_dynts.capacity import (
    AnswerReserve,
    Demand,
    are_near_due,
    calm_rounds,
    choose_compactions,
    is_crowded,
    room_beyond_retained,
    rounds_until_half,
    stagger_rate,
)

PLENTY = Demand(free=10**6, step=8)
WAITING = Demand(free=10**6, step=8, waiting=True)
FAR = 10**6

TABLE = {
    # name: (give, remaining, period, demand, chosen)
    "nothing is due": ([5, -3], [40, 90], 80, PLENTY, []),
    "what is due is compacted": ([80, 5], [0, 75], 80, PLENTY, [0]),
    "overdue too": ([95, 5], [-15, 75], 80, PLENTY, [0]),
    "one near due waits for its turn": ([79, 70], [1, 10], 80, PLENTY, []),
    "two due at once: one goes a step early": ([79, 79], [1, 1], 80, PLENTY, [0]),
    "three due in two steps: one goes now": ([78, 78, 78], [2, 2, 2], 80, PLENTY, [0]),
    "of equal urgency the first in the batch": ([79, 79, 79], [1, 1, 1], 80, PLENTY, [0]),
    "nobody is moved forward by more than an eighth": ([69, 69], [11, 11], 80, PLENTY, []),
    "the step fits: nobody gives": ([60, 60], [20, 20], 80, Demand(free=2, step=2), []),
    "the step does not fit: the largest gives": ([40, 60], [40, 20], 80, Demand(1, 2), [1]),
    "as many as it takes": ([40, 60, 50], [40, 20, 30], 80, Demand(0, 100), [1, 2]),
    "what is due counts first": ([80, 60], [0, 20], 80, Demand(0, 50), [0]),
    "too little to give: 1/32 of the period": ([2, 3], [78, 77], 80, Demand(0, 2), [1]),
    "no request gives more than it can": ([-4, 0], [84, 80], 80, Demand(0, 2), []),
    "the queue gets large gifts only": ([19, 20], [61, 60], 80, Demand(9, 2, queue=40), [1]),
    "the queue gets few at a time": ([50, 60, 70], [FAR] * 3, 80, Demand(9, 3, queue=200), [2]),
    "the queue needs nothing that is free": ([50, 60], [FAR] * 2, 80, Demand(60, 2, queue=40), []),
    "nobody waits: half a period is no reason": ([50, 40], [30, 40], 80, PLENTY, []),
    "who waits gets the windows that give half": ([39, 40], [41, 40], 80, WAITING, [1]),
    "the largest first, few at a time": ([50, 60], [30, 20], 80, WAITING, [1]),
    "the step before the queue": ([50, 60], [FAR] * 2, 80, Demand(0, 2, queue=100), [0, 1]),
}


@pytest.mark.parametrize("name", TABLE)
def test_who_is_compacted(name):
    give, remaining, period, demand, chosen = TABLE[name]
    periods = np.full(len(give), period)
    found = choose_compactions(
        np.array(give), np.array(remaining), periods, demand, stagger_rate(periods)
    )
    assert found.tolist() == chosen


def lockstep(num: int, period: int) -> list[int]:
    """Compactions per iteration of requests that started together, over three periods."""
    windows, counts = np.zeros(num, dtype=np.int64), []
    for _ in range(3 * period):
        windows += 1
        periods = np.full(num, period)
        chosen = choose_compactions(windows, period - windows, periods, PLENTY, stagger_rate(periods))
        assert windows.max(initial=0) <= period
        assert (windows[chosen] >= period - period // 8).all()
        windows[chosen] = 0
        counts.append(len(chosen))
    return counts


@pytest.mark.parametrize(("num", "period"), [(2, 80), (4, 22), (32, 1800), (300, 1800), (1000, 300)])
def test_requests_that_started_together_are_never_compacted_together(num, period):
    counts = lockstep(num, period)
    assert max(counts) <= stagger_rate(np.full(num, period))
    assert sum(counts) >= 2 * num


def test_one_request_alone_is_compacted_when_due_and_not_before():
    counts = lockstep(1, 80)
    assert [at for at, count in enumerate(counts) if count] == [79, 159, 239]


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(-20, 400)), min_size=1, max_size=40),
    st.integers(0, 300),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_the_step_is_served_if_those_that_may_give_can_serve_it(requests, free, step, queue):
    period = np.array([p for p, _ in requests])
    remaining = np.array([p - min(age, p + 20) for p, age in requests])
    give = period - remaining
    chosen = choose_compactions(give, remaining, period, Demand(free, step, queue), stagger_rate(period))
    may = (give > 0) & ((give * 32 >= period) | (remaining <= 0))
    assert (remaining[chosen] <= 0).sum() == (remaining <= 0).sum()
    assert may[chosen].all()
    assert free + give[chosen].sum() >= step or set(np.flatnonzero(may)) <= set(chosen)


def test_the_rate_serves_everybody_within_an_eighth_of_a_period():
    assert stagger_rate(np.array([80])) == 1
    assert stagger_rate(np.full(478, 1800)) == 3
    assert stagger_rate(np.array([80, 80, 8])) == 2


def test_near_due_is_within_an_eighth_of_a_period():
    remaining, period = np.array([0, 10, 11, 0, 1]), np.array([80, 80, 80, 7, 7])
    assert are_near_due(remaining, period).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("period", "answer", "elastic", "room"),
    [
        (1800, 0, True, 450),  # the mean of half a period
        (1800, 337, True, 450),  # a sixteenth, 113, is left to thinking
        (1800, 1000, True, 1113),
        (7, 0, True, 2),
        (1800, 0, False, 1800),
        (1800, 300, False, 2100),
    ],
)
def test_the_room_reserved_beyond_what_is_retained(period, answer, elastic, room):
    assert room_beyond_retained(period, answer, elastic) == room


def test_the_answer_reserve_starts_safe_and_learns():
    reserve = AnswerReserve(first_guess=900)
    assert reserve.tokens == 900
    for length in range(15):
        reserve.observe(length)
    assert reserve.tokens == 900
    reserve.observe(2000)
    assert reserve.tokens == 511  # of 0..14 and 2000: 14 + 0.25 * (2000 - 14), rounded up


def test_the_answer_reserve_forgets_what_is_long_past():
    reserve = AnswerReserve(first_guess=900)
    for length in [5000] * 100 + [7] * 256:
        reserve.observe(length)
    assert reserve.tokens == 7


def test_few_long_answers_raise_the_first_guess():
    reserve = AnswerReserve(first_guess=10)
    reserve.observe(400)
    assert reserve.tokens == 400


@pytest.mark.parametrize(
    ("remaining", "rate", "rounds"),
    [
        ([5], 1, 4),
        ([5, 5], 1, 3),
        ([5, 5], 2, 4),
        ([9, 2], 1, 1),
        ([1], 1, 0),
        ([0, 9], 1, -1),
        ([-3], 1, -4),
    ],
)
def test_calm_lasts_until_one_is_due_or_two_are_at_once(remaining, rate, rounds):
    assert calm_rounds(np.array(remaining), rate) == rounds


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 4))
def test_in_calm_rounds_nothing_is_due_or_crowded_and_in_the_next_something_is(remaining, rate):
    tokens = np.array(remaining)
    calm = calm_rounds(tokens, rate)
    for passed in range(1, calm + 1):
        assert (tokens - passed > 0).all()
        assert not is_crowded(tokens - passed, rate)
    assert is_crowded(tokens - calm - 1, rate)


@pytest.mark.parametrize(
    ("give", "period", "rounds"),
    [
        ([0], 80, 39),
        ([38, 10], 80, 1),
        ([39], 80, 0),
        ([40], 80, -1),
        ([0], 7, 3),
        ([-(1 << 40)], 1, 1 << 40),
    ],
)
def test_rounds_until_a_window_can_give_half_its_period(give, period, rounds):
    assert rounds_until_half(np.array(give), np.full(len(give), period)) == rounds
