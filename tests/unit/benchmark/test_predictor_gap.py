"""Forced traces say what generation says, and every way of scoring can be fitted and judged."""

from functools import partial

import pytest
import torch

from benchmark.ledgers.evaluate import SHIPPED_MODEL
from benchmark.ledgers.export import load_model_folder
from benchmark.ledgers.forced import num_right, read_held, words_that_count
from benchmark.ledgers.rollout import DynTSPolicy
from benchmark.studies.gap_ways import FITTED, Batch, SeeFuture, fit_ways, moment_inputs
from benchmark.studies.predictor_gap import judge
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo.ledger import make_problem

PROBLEMS = [make_problem(seed, brief=True) for seed in range(4)]
WINDOWS = DynTSConfig(budget=120, local_window=24, keep_ratio=0.9)


@pytest.fixture(scope="module")
def model():
    return load_model_folder(SHIPPED_MODEL)


@pytest.fixture(scope="module")
def batch(model):
    return Batch.of(model, PROBLEMS)


def test_all_seen_the_states_and_attention_are_the_models(model, batch):
    with torch.no_grad():
        hidden, attention = model.mean_attention(batch.tokens)
    torch.testing.assert_close(batch.whole.states[-1], hidden, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(batch.whole.attention, attention, rtol=1e-3, atol=1e-5)
    assert num_right(PROBLEMS, batch.whole) == 4


def test_a_token_sees_question_survivors_and_itself_within_the_budget(model, batch):
    def oldest_first(reading):
        return DynTSPolicy(WINDOWS, lambda hidden, position: torch.full((4,), -float(position)))

    _, mask = read_held(model, batch.tokens, batch.question_len, oldest_first, batch.whole)
    thinking = mask[:, batch.question_len : batch.thinking_end]
    budget = WINDOWS.budget_for(batch.question_len)
    assert thinking.sum(-1).max() == budget
    assert thinking[:, :, : batch.question_len].all()
    assert mask.diagonal(dim1=1, dim2=2).all()
    oldest = slice(batch.question_len, batch.question_len + WINDOWS.selection_len(batch.question_len))
    assert mask[:, batch.thinking_end - 1, oldest].all()


def test_words_that_count_are_the_answer_and_the_entries_it_follows_from():
    problem = PROBLEMS[0]
    words = f"{problem.prompt} {problem.completion}".split()
    places = words_that_count(problem)
    said = [words[place] for place in places]
    answer = problem.answer.split()
    assert said[-len(answer) - 1 : -1] == answer
    for name in answer[::2]:
        assert f"{name} from" in " ".join(said)
    assert len(said) < len(words) - len(problem.prompt.split())


def test_the_delayed_oracle_sees_only_what_reads_later(batch):
    future = SeeFuture(batch.whole.attention)
    start, n = batch.question_len, 30
    scores = future(torch.zeros(4, n), batch.whole.attention, start)
    expected = batch.whole.attention[1, start + n :, start + 5].max()
    assert scores[1, 5] == expected


def test_what_is_known_of_a_token_at_a_moment_does_not_depend_on_later_ones(batch):
    start, n = batch.question_len, 50
    changed = batch.whole.attention.clone()
    changed[:, start + n :] = 7
    pair = [
        moment_inputs(torch.ones(4, n), attention, start)
        for attention in (batch.whole.attention, changed)
    ]
    assert torch.equal(*pair)
    assert pair[0].shape == (4, n, 4)


def test_every_way_is_fitted_and_judged(model, batch, monkeypatch):
    monkeypatch.setattr("benchmark.studies.gap_ways.FAR_DISTANCE", 16)
    ways = fit_ways([batch], seed=1, epochs=1)
    assert set(ways.fitted) == set(FITTED)
    for way in (*FITTED, "oracle", "delayed_oracle"):
        right, held = judge(model, partial(ways.policy, way), WINDOWS, [batch])
        assert 0 <= right <= 4
        assert batch.question_len < held <= WINDOWS.budget_for(batch.question_len)
    assert ways.fitted["layers"].predictor.hidden_size == 3 * 128
