"""Rollouts under a policy hold what the method says, and drop it for good."""

import json

import pytest
import torch

from benchmark.harness.grading import wilson_interval
from benchmark.ledgers import evaluate
from benchmark.ledgers.model import DemoModel, ModelShape
from benchmark.ledgers.rollout import (
    FREE,
    DynTSPolicy,
    FullPolicy,
    HeldTokens,
    Policy,
    RecentPolicy,
    Rollout,
    generate,
)
from sgl_dynts.config import DynTSConfig
from sgl_dynts.reference import kept_positions

QUESTION_LEN = 5
CONFIG = DynTSConfig(budget=24, local_window=8, keep_ratio=0.6)
NEVER = -1


@pytest.fixture(scope="module")
def model() -> DemoModel:
    torch.manual_seed(0)
    shape = ModelShape(vocab_size=40, hidden_size=32, intermediate_size=32, num_layers=2)
    return DemoModel(shape).requires_grad_(False)


def rollout(model: DemoModel, policy: Policy, max_new_tokens: int = 60) -> Rollout:
    prompts = torch.arange(3 * QUESTION_LEN).view(3, QUESTION_LEN)
    return generate(model, prompts, policy, end_think=NEVER, eos=NEVER, max_new_tokens=max_new_tokens)


def test_holding_everything_equals_recomputing_everything(model: DemoModel) -> None:
    tokens = rollout(model, FullPolicy(), 12).tokens
    sequence = torch.arange(QUESTION_LEN)[None]
    for expected in tokens[0]:
        next_token = model(sequence)[0, -1].argmax()
        assert next_token == expected
        sequence = torch.cat((sequence, next_token[None, None]), dim=1)


def test_forced_tokens_are_written_and_the_rest_follows_from_them(model: DemoModel) -> None:
    prompts = torch.arange(3 * QUESTION_LEN).view(3, QUESTION_LEN)
    given = torch.tensor([[7, 8], [9, FREE], [FREE, FREE]])
    found, free = (
        generate(
            model, prompts, FullPolicy(), end_think=NEVER, eos=NEVER, max_new_tokens=9, forced=forced
        ).tokens
        for forced in (given, None)
    )
    assert (found[0][:2], found[1][0], found[2]) == ([7, 8], 9, free[2])
    sequence = torch.cat((prompts[0], torch.tensor([7, 8])))[None]
    assert found[0][2] == model(sequence)[0, -1].argmax()


@pytest.mark.parametrize("policy", [RecentPolicy(24), DynTSPolicy(CONFIG, lambda h, p: h[:, 0])])
def test_no_policy_holds_more_than_its_budget(model: DemoModel, policy: Policy) -> None:
    assert rollout(model, policy).peak_held.tolist() == [24, 24, 24]


def test_compactions_keep_what_the_reference_keeps() -> None:
    torch.manual_seed(1)
    scores = torch.rand(2, 70).round(decimals=1)
    held = torch.zeros(2, 70, dtype=torch.bool)
    held[:, :QUESTION_LEN] = True
    windows = HeldTokens(held, torch.ones(2, dtype=torch.bool), QUESTION_LEN)
    policy = DynTSPolicy(CONFIG, lambda hidden, position: scores[:, position])
    expected = [list(range(QUESTION_LEN))] * 2
    for position in range(QUESTION_LEN, 70):
        windows.held[:, position] = True
        policy.after_token(windows, torch.empty(2, 0), position)
        expected = [
            kept_positions([*window, position], row, [True] * 70, QUESTION_LEN, CONFIG)
            for window, row in zip(expected, scores.tolist(), strict=True)
        ]
        assert [row.nonzero()[:, 0].tolist() for row in windows.held] == expected
    assert policy.num_compactions > 6


def test_nothing_is_dropped_once_thinking_has_ended(model: DemoModel) -> None:
    windows = HeldTokens(torch.ones(1, 40, dtype=torch.bool), torch.tensor([False]), QUESTION_LEN)
    for policy in (RecentPolicy(24), DynTSPolicy(CONFIG, lambda hidden, position: hidden[:, 0])):
        policy.after_token(windows, torch.zeros(1, 1), 39)
        assert windows.lengths().tolist() == [40]


def test_wilson_interval_of_19_in_20() -> None:
    assert wilson_interval(19, 20) == pytest.approx((0.7639, 0.9911), abs=1e-4)


def test_an_evaluation_keeps_a_row_for_each_policy_and_puts_it_in_place_of_an_older_one(tmp_path):
    out = tmp_path / "kept.json"
    words = ["--num-problems", "1", "--num-steps", "6", "--policies", "window", "full"]
    for _ in range(2):
        evaluate.main([*words, "--out", str(out)])
    rows = json.loads(out.read_text())
    assert [(row["policy"], row["family"], row["n"], row["num_steps"]) for row in rows] == [
        ("window", "qwen3", 1, 6),
        ("full", "qwen3", 1, 6),
    ]
    assert set(evaluate.SETTINGS) <= set(rows[0])
