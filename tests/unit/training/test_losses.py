"""Scales and losses of a few tokens, written out."""

import math

import pytest
import torch

from sgl_dynts.training.losses import LOSSES, SCALES, by_log, by_mean
from sgl_dynts.training.recipe import LOSS_NAMES, SCALE_NAMES


def test_scales_are_the_authors():
    targets = torch.tensor([0.0, 1e-4, 1.0])
    power, times = SCALES["power"], SCALES["times"]
    assert power is not None
    assert times is not None
    assert power(targets).tolist() == pytest.approx([0, 10 * 1e-4**0.3 / 0.3, 100 / 3])
    assert times(targets).tolist() == pytest.approx([0, 1, 10_000])


def test_a_logarithm_has_a_floor_of_a_hundredth_of_the_mean():
    scaled = by_log(5.0)(torch.tensor([0.0, 0.05, 50.0, 500.0]))
    assert scaled.tolist() == pytest.approx([0, math.log(2), math.log(1001), math.log(10_001)])


def test_targets_whose_mean_is_0_are_refused():
    with pytest.raises(ValueError, match="not above 0"):
        by_mean(0.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mse", 1 + 4 + 9),
        ("mse-band", 1 + 5 * 4 + 9),  # 4 is in [4, 5), 5 is not
        ("mse-emphasis", 1 * (1 + 2 * 1) + 4 * (1 + 2 * 4) + 9 * (1 + 2 * 5)),
    ],
)
def test_squared_errors_weigh_tokens_by_their_targets(name, expected):
    loss = LOSSES[name](2.0)
    assert loss(torch.tensor([2.0, 2.0, 8.0]), torch.tensor([1.0, 4.0, 5.0])).item() == expected


def test_listwise_is_a_cross_entropy_over_the_trace():
    loss = LOSSES["listwise"](0.0)
    scores, targets = torch.tensor([0.0, math.log(3)]), torch.tensor([1.0, 1.0])
    assert loss(scores, targets).item() == pytest.approx(-2 * (math.log(1 / 4) + math.log(3 / 4)) / 2)
    assert loss(scores, torch.zeros(2)).item() == 0  # nothing is read: nothing to learn


def test_every_name_that_a_recipe_takes_has_its_function():
    assert (tuple(LOSSES), tuple(SCALES)) == (LOSS_NAMES, SCALE_NAMES)
