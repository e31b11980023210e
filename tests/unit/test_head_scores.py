"""Scores by head move as K and V do, and come back as they were noted."""

import torch

from sgl_dynts.head_scores import HeadScores
from sgl_dynts.head_sets import move_with_torch, plan_moves


def test_what_is_noted_is_the_same_in_every_head_until_something_moves():
    scores = HeadScores(6, [2, 2, 2], "cpu")
    slots = torch.tensor([4, 2])
    scores.note(slots, torch.tensor([0.5, 0.25]))
    assert scores.noted(slots).tolist() == [0.5, 0.25]
    assert scores.read(slots).tolist() == [[[0.5, 0.25]] * 2] * 3
    assert scores.bytes_per_token == 3 * 2 * 4


def test_each_head_takes_the_scores_of_its_tokens_along():
    scores = HeadScores(5, [2], "cpu")
    slots = torch.tensor([1, 2, 3])
    scores.note(slots, torch.tensor([0.1, 0.2, 0.3]))
    chosen = torch.tensor([[[9.0, 1.0, 8.0], [1.0, 8.0, 9.0]]])  # the first and last, the last two
    moves = plan_moves(chosen, torch.zeros(3, dtype=torch.bool), slots, 2)
    move_with_torch(moves, [scores.layers])
    torch.testing.assert_close(scores.read(slots[:2]), torch.tensor([[[0.1, 0.3], [0.2, 0.3]]]))


def test_a_copy_is_written_to_other_slots():
    scores = HeadScores(6, [1, 1], "cpu")
    scores.note(torch.tensor([1, 2]), torch.tensor([0.1, 0.2]))
    copy = scores.read(torch.tensor([1, 2]))
    scores.write(torch.tensor([5, 4]), copy)
    assert torch.equal(scores.read(torch.tensor([5, 4])), copy)
