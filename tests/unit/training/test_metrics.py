"""Orderings compared by hand."""

import pytest
import torch

from sgl_dynts.training.metrics import Ranking, in_the_top, mean_ranking, rank_quality

TARGETS = torch.arange(10.0)
NONE_KNOWN = torch.zeros(10, dtype=torch.bool)


def test_the_same_order_is_perfect_whatever_the_values():
    quality = rank_quality(TARGETS.square(), TARGETS, NONE_KNOWN)
    assert quality == Ranking(quality.tau, 1, 1, None, None)
    assert quality.tau == pytest.approx(1)


def test_the_opposite_order_finds_nothing_at_the_top():
    quality = rank_quality(-TARGETS, TARGETS, NONE_KNOWN)
    assert quality == Ranking(quality.tau, 0, 0, None, None)
    assert quality.tau == pytest.approx(-1)


def test_one_swap_of_neighbours_costs_two_of_45_pairs():
    scores = TARGETS.clone()
    scores[[7, 8]] = TARGETS[[8, 7]]  # the top 2 is now 9 and 7, the top 3 the same
    quality = rank_quality(scores, TARGETS, NONE_KNOWN)
    assert quality.tau == pytest.approx(43 / 45)
    assert (quality.overlap_20, quality.overlap_30) == (0.5, 1)


def test_recall_counts_the_critical_tokens_alone():
    critical = torch.tensor([index in (9, 7, 0) for index in range(10)])
    quality = rank_quality(TARGETS, TARGETS, critical)
    assert quality.recall_20 == pytest.approx(1 / 3)
    assert quality.recall_30 == pytest.approx(2 / 3)


def test_equal_scores_have_no_order_and_go_to_the_older_token():
    assert rank_quality(torch.ones(10), TARGETS, NONE_KNOWN).tau == 0
    assert in_the_top(torch.ones(10), 0.2).tolist() == [True, True] + [False] * 8


def test_the_mean_of_recalls_is_over_traces_where_they_are_known():
    mean = mean_ranking([Ranking(1, 1, 1, None, None), Ranking(0, 0.5, 0, 0.25, 0.75)])
    assert mean == Ranking(0.5, 0.75, 0.5, 0.25, 0.75)
