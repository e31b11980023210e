"""One finite float32 per slot; infinite only for what is protected."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sgl_dynts.score_pool import ScorePool

NAN, INF = float("nan"), float("inf")
FLOATS = st.floats(width=32)


def test_a_new_pool_scores_nothing():
    pool = ScorePool(3, "cpu")
    assert pool.scores.tolist() == [0.0, 0.0, 0.0]
    assert pool.scores.dtype == torch.float32


def test_scores_land_in_their_slots():
    pool = ScorePool(5, "cpu")
    pool.write(torch.tensor([4, 1], dtype=torch.int32), torch.tensor([0.5, 2.0]))
    assert pool.scores.tolist() == [0.0, 2.0, 0.0, 0.0, 0.5]


def test_nothing_that_is_written_is_infinite_or_not_a_number():
    pool = ScorePool(4, "cpu")
    pool.write(torch.arange(4), torch.tensor([NAN, INF, -INF, 1.0]))
    most = torch.finfo(torch.float32).max
    assert pool.scores.tolist() == [0.0, most, -most, 1.0]


def test_padding_may_repeat_the_padding_slot():
    pool = ScorePool(3, "cpu")
    pool.write(torch.tensor([2, 0, 0, 0]), torch.tensor([1.0, 7.0, 8.0, 9.0]))
    assert pool.scores[1:].tolist() == [0.0, 1.0]


def test_protected_slots_outrank_everything_until_they_are_written_again():
    pool = ScorePool(3, "cpu")
    pool.protect(torch.tensor([1, 2]))
    assert pool.scores.tolist() == [0.0, INF, INF]
    pool.write(torch.tensor([1]), torch.tensor([INF]))
    assert pool.scores.isinf().tolist() == [False, False, True]


def test_the_tensor_stays_where_a_captured_graph_expects_it():
    pool = ScorePool(3, "cpu")
    address = pool.scores.data_ptr()
    pool.write(torch.tensor([1]), torch.tensor([1.0]))
    pool.protect(torch.tensor([2]))
    assert pool.scores.data_ptr() == address


@given(st.dictionaries(st.integers(0, 9), FLOATS, min_size=1))
def test_only_the_written_slots_change_and_only_to_finite_scores(writes):
    pool = ScorePool(10, "cpu")
    pool.write(torch.tensor(list(writes)), torch.tensor(list(writes.values())))
    assert pool.scores.isfinite().all()
    assert all(pool.scores[slot] == 0 for slot in range(10) if slot not in writes)
