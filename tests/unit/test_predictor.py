"""The importance MLP against the same formula written out."""

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgl_dynts.predictor import ImportancePredictor


def softplus(value: float) -> float:
    return log(1 + exp(value))


def by_hand(weights: list[list[list[float]]], hidden: list[float]) -> float:
    state = hidden
    for rows in weights:
        state = [softplus(sum(w * x for w, x in zip(row, state, strict=True))) for row in rows]
    return state[0]


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_scores_equal_three_linear_layers_and_softplus_written_out(seed, width, inner, small):
    torch.manual_seed(seed)
    predictor = ImportancePredictor(width, (inner, small))
    hidden = torch.randn(3, width)
    weights = [weight.tolist() for weight in predictor.parameters()]
    wanted = [by_hand(weights, row) for row in hidden.tolist()]
    assert predictor(hidden).tolist() == pytest.approx(wanted, rel=1e-5)


def test_a_predictor_of_zeros_scores_log_two():
    predictor = ImportancePredictor(2, (2, 2))
    for weight in predictor.parameters():
        torch.nn.init.zeros_(weight)
    assert predictor(torch.ones(1, 2)).item() == pytest.approx(log(2))


def test_sizes_are_those_of_the_weights():
    predictor = ImportancePredictor(3584, (8, 4))
    assert (predictor.hidden_size, predictor.inner_sizes) == (3584, (8, 4))
    assert [tuple(w.shape) for w in predictor.parameters()] == [(8, 3584), (4, 8), (1, 4)]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)])
def test_one_score_per_token_whatever_the_batch_looks_like(shape):
    assert ImportancePredictor(4, (3, 2))(torch.zeros(*shape, 4)).shape == shape


def test_no_tokens_give_no_scores():
    assert ImportancePredictor(4, (3, 2))(torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_are_float32_whatever_the_dtypes(dtype):
    predictor = ImportancePredictor(4, (3, 2)).to(torch.bfloat16)
    assert predictor(torch.ones(2, 4, dtype=dtype)).dtype == torch.float32


def test_scores_are_never_negative():
    predictor = ImportancePredictor(4, (3, 2))
    assert (predictor(torch.randn(100, 4) * 100) >= 0).all()
