"""select_kept against sorting every row by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sgl_dynts.selection import select_kept

SCORES = st.sampled_from([0.0, 0.5, 1.0, 2.0, float("inf"), float("-inf"), 3e38])


@st.composite
def ragged(draw) -> list[tuple[list[float], int]]:
    """Rows of scores, each with how many of them survive."""
    rows = draw(st.lists(st.lists(SCORES, max_size=12), min_size=1, max_size=6))
    return [(row, draw(st.integers(0, len(row)))) for row in rows]


def obvious(scores: list[float], num_kept: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:num_kept])


def select(rows: list[tuple[list[float], int]], filler: float = 9.0) -> list[set[int]]:
    width = max(len(scores) for scores, _ in rows)
    padded = torch.tensor([scores + [filler] * (width - len(scores)) for scores, _ in rows])
    kept = select_kept(
        padded.reshape(len(rows), width),
        torch.tensor([len(scores) for scores, _ in rows]),
        torch.tensor([num_kept for _, num_kept in rows]),
    )
    return [set(row.nonzero().flatten().tolist()) for row in kept]


@given(ragged())
def test_every_row_keeps_exactly_its_best_whatever_stands_beyond_it(rows):
    wanted = [obvious(scores, num_kept) for scores, num_kept in rows]
    assert select(rows) == wanted
    assert select(rows, float("nan")) == wanted
    assert select(rows, float("inf")) == wanted


def test_equal_scores_go_to_the_older_token():
    assert select([([1.0] * 8, 3)]) == [{0, 1, 2}]
    assert select([([1.0, 2.0, 1.0, 2.0, 1.0], 3)]) == [{0, 1, 3}]


def test_many_equal_scores_go_to_the_older_token():
    assert select([([0.25] * 5000, 1234)]) == [set(range(1234))]


def test_all_survive_when_all_are_asked_for():
    assert select([([3.0, 1.0, 2.0], 3), ([5.0], 1)]) == [{0, 1, 2}, {0}]


def test_none_survives_when_none_is_asked_for():
    assert select([([3.0, 1.0, 2.0], 0)]) == [set()]


def test_a_request_without_candidates_keeps_nothing():
    assert select([([], 0), ([1.0, 2.0], 1)]) == [set(), {1}]


def test_minus_infinity_still_outranks_the_padding():
    low = float("-inf")
    assert select([([low, low], 2), ([1.0, 2.0, 3.0, 4.0], 1)]) == [{0, 1}, {3}]


def test_protected_tokens_survive_before_all_others():
    assert select([([9.0, float("inf"), 3e38, float("inf")], 2)]) == [{1, 3}]
