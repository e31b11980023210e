"""Targets compared with attention that the model returns whole, and with derivatives by hand."""

import re
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sgl_dynts.training.importance import (
    TraceSpans,
    answer_importance,
    deletion_importance,
    future_importance,
    gradient_importance,
)

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
}
# Longer than one chunk of rows, thinking and answer both.
SPANS = TraceSpans(thinking_start=7, thinking_end=110, length=190)
DISTANCE = 20


@pytest.fixture(params=MODELS)
def model(request):
    model_class, config_class, more = MODELS[request.param]
    torch.manual_seed(3)
    model = model_class(config_class(**SIZES, **more, attn_implementation="sdpa")).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)  # pointed attention: with a near uniform one every target looks alike
    return model


@pytest.fixture
def ids():
    return torch.randint(50, (SPANS.length,), generator=torch.Generator().manual_seed(4))


def whole_attention(model, ids):
    """Return (hidden [s, d], attention [s, s], a mean over layers and heads), the naive way."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(ids[None], output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation("sdpa")
    return output.hidden_states[-1][0], torch.stack(output.attentions).mean((0, 1, 2))


def test_answer_is_the_mean_of_the_answers_rows(model, ids):
    importance = answer_importance(model, ids, SPANS)
    hidden, attention = whole_attention(model, ids)
    attention.fill_diagonal_(0)
    expected = [attention[111:, column].mean().item() for column in range(7, 110)]
    torch.testing.assert_close(importance.targets, torch.tensor(expected), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(importance.hidden, hidden[7:110], rtol=1e-3, atol=1e-4)
    assert importance.targets.std() > 1e-4


def test_future_is_the_most_of_the_far_rows(model, ids):
    importance = future_importance(model, ids, SPANS, DISTANCE)
    _, attention = whole_attention(model, ids)
    expected = [attention[column + DISTANCE + 1 :, column].max().item() for column in range(7, 110)]
    torch.testing.assert_close(importance.targets, torch.tensor(expected), rtol=1e-3, atol=1e-6)


def test_the_future_of_tokens_without_a_far_reader_is_zero(model, ids):
    importance = future_importance(model, ids, SPANS, distance=150)
    first_without = 190 - 150 - 1 - 7
    assert importance.targets[first_without:].eq(0).all()
    assert importance.targets[:first_without].gt(0).all()


def naive_deletion(model, ids, distance: int, columns: range) -> list[float]:
    """Each token taken out of every row of every head, what is left of the row shared out anew."""
    values = []
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda _module, _args, out: values.append(out[0]))
        for layer in model.model.layers
    ]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(ids[None], output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation("sdpa")
    for hook in hooks:
        hook.remove()
    totals = torch.zeros(len(ids), dtype=torch.float64)
    for layer, rows, value, state in zip(
        model.model.layers, output.attentions, values, output.hidden_states, strict=False
    ):
        heads, size = rows.shape[1], state[0].norm(dim=-1)
        weight = layer.self_attn.o_proj.weight
        dim = weight.shape[1] // heads
        for head in range(heads):
            group = head * SIZES["num_key_value_heads"] // heads
            own, out = value[:, group * dim : (group + 1) * dim], weight[:, head * dim : (head + 1) * dim]
            for column in columns:
                readers = rows[0, head, column + distance + 1 :]
                without = readers.clone()
                without[:, column] = 0
                without /= without.sum(-1, keepdim=True)
                change = (readers - without) @ own @ out.T
                share = change.norm(dim=-1) / size[column + distance + 1 :]
                totals[column] += share.square().sum()
    return totals[list(columns)].tolist()


@pytest.mark.parametrize("distance", [0, DISTANCE])
def test_deletion_is_what_changes_when_a_token_is_taken_out(model, ids, distance):
    for parameter in model.double().parameters():
        parameter.data.mul_(0.5)  # no head reads one token alone
    columns = range(SPANS.thinking_start, SPANS.thinking_end, 6)
    targets = deletion_importance(model, ids, SPANS, distance).targets[::6]
    expected = torch.tensor(naive_deletion(model, ids, distance, columns), dtype=torch.float32)
    assert expected.min() > 0
    assert expected.max() > 10 * expected.min()
    torch.testing.assert_close(targets, expected, rtol=1e-3, atol=1e-6 * expected.max().item())
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)


def test_gradient_is_the_derivative_by_a_factor_at_the_embedding(model, ids):
    targets = gradient_importance(model, ids, SPANS).targets
    model.set_attn_implementation("eager")
    factors = torch.ones(SPANS.length, 1, requires_grad=True)
    embedded = model.get_input_embeddings()(ids).detach() * factors
    scores = model(inputs_embeds=embedded[None]).logits[0].log_softmax(-1)
    torch.stack([scores[row - 1, ids[row]] for row in range(111, 190)]).sum().backward()
    assert factors.grad is not None
    expected = factors.grad[7:110, 0].abs()
    assert expected.max() > 1e-3
    torch.testing.assert_close(targets, expected, rtol=1e-2, atol=1e-3 * expected.max().item())


def test_the_models_own_attention_is_back_afterwards(model, ids):
    answer_importance(model, ids, SPANS)
    assert model.config._attn_implementation == "sdpa"


def test_a_trace_longer_than_the_model_is_refused(model):
    with pytest.raises(ValueError, match=re.escape("257 tokens is longer than the model's max")):
        answer_importance(model, torch.zeros(257, dtype=torch.int64), TraceSpans(1, 5, 257))


def test_a_model_whose_every_layer_slides_is_refused():
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=0)
    model = Qwen2ForCausalLM(config)
    with pytest.raises(ValueError, match="none of its layers attends to everything"):
        answer_importance(model, torch.zeros(9, dtype=torch.int64), TraceSpans(1, 5, 9))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("spans", "message"), [((5, 5, 9), "no thinking token"), ((2, 8, 9), "nothing follows the end")]
)
def test_a_trace_without_thinking_or_answer_is_refused(spans, message):
    with pytest.raises(ValueError, match=message):
        TraceSpans(*spans)
