"""Targets of models of every family, compared with attention that Hugging Face's code returns whole."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from sgl_dynts.training.importance import (
    TraceSpans,
    answer_importance,
    deletion_importance,
    future_importance,
    gradient_importance,
)
from tests.e2e.models import CONFIGS
from tests.e2e.step_models import STEP

SPANS = TraceSpans(thinking_start=7, thinking_end=110, length=190)
DISTANCE = 20
LLAMA_LIKE = ("changes_its_mind", "llama", "qwen2", "qwen3")
"""Of test_importance."""
WINDOWED = ("mistral", "phi3")
"""Hugging Face's code gives every layer a window, and names no kinds of layers."""
GATED = ("qwen3_next", "qwen3_5", "qwen3_5_text")
"""What their heads give goes through a gate."""
DRAFTING = ("llama_deep", "deepseek_v3_mtp", "qwen3_next_mtp")
"""Of families that are among the others; nothing here reads their heads."""
WITHOUT_CLASS = (STEP,)
"""Transformers has its layers inside a model that sees, and no class for them alone."""
FAMILIES = [kind for kind in CONFIGS if kind not in (*LLAMA_LIKE, *WINDOWED, *DRAFTING, *WITHOUT_CLASS)]


def build(kind: str) -> PreTrainedModel:
    """A random model of pointed attention: with a near uniform one every target looks alike."""
    config = CONFIGS[kind]
    torch.manual_seed(3)
    takes_images = hasattr(config, "vision_config")
    model = (AutoModelForImageTextToText if takes_images else AutoModelForCausalLM).from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.copy_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def draw(length: int) -> torch.Tensor:
    return torch.randint(10, 200, (length,), generator=torch.Generator().manual_seed(4))


def whole_attention(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """[s, s], a mean over heads and the layers that attend to everything."""
    config = model.config.get_text_config()
    before = config._attn_implementation or "eager"
    model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = model(ids[None], output_attentions=True).attentions
    model.set_attn_implementation(before)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(layers)
    attend = [kind for kind in kinds if kind != "linear_attention"]
    full = [rows for rows, kind in zip(layers, attend, strict=True) if kind == "full_attention"]
    return torch.stack(full).mean((0, 1, 2))


@pytest.mark.parametrize("kind", FAMILIES)
def test_targets_are_of_the_layers_that_attend_to_everything(kind):
    model, ids = build(kind), draw(SPANS.length)
    attention = whole_attention(model, ids)
    thinking = attention[:, SPANS.thinking]
    answers = answer_importance(model, ids, SPANS).targets
    torch.testing.assert_close(answers, thinking[111:].mean(0), rtol=1e-3, atol=1e-6)
    assert answers.std() > 1e-4
    far = [thinking[column + 7 + DISTANCE + 1 :, column].max() for column in range(103)]
    futures = future_importance(model, ids, SPANS, DISTANCE).targets
    torch.testing.assert_close(futures, torch.stack(far), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", FAMILIES)
def test_deletion_and_gradient_are_of_one_size_per_token(kind):
    model, ids = build(kind), draw(SPANS.length)
    found = [gradient_importance(model, ids, SPANS)]
    if kind not in GATED:
        found.append(deletion_importance(model, ids, SPANS, DISTANCE))
    for importance in found:
        assert importance.hidden.shape == (103, CONFIGS[kind].get_text_config().hidden_size)
        assert importance.targets.isfinite().all()
        assert importance.targets.std() > 0


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_window_that_holds_the_trace_hides_nothing(kind):
    spans, ids = TraceSpans(3, 12, 20), draw(20)
    model = build(kind)
    expected = whole_attention(model, ids)[13:, 3:12].mean(0)
    torch.testing.assert_close(answer_importance(model, ids, spans).targets, expected)


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_shorter_window_is_refused(kind):
    with pytest.raises(ValueError, match=f"'{kind}': none of its layers attends to everything"):
        answer_importance(build(kind), draw(SPANS.length), SPANS)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_deletion_knows_soft_caps_and_sinks(kind):
    model, ids, spans = build(kind), draw(60), TraceSpans(3, 40, 60)
    expected = naive_deletion(model, ids, distance=5)[3:40].float()
    assert expected.max() > 10 * expected.min() > 0
    found = deletion_importance(model, ids, spans, 5).targets
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6 * expected.max().item())


def naive_deletion(model: PreTrainedModel, ids: torch.Tensor, distance: int) -> torch.Tensor:
    """Each token taken out of every row of every head, its share given to the rest, a sink included."""
    config, values = model.config, []
    layers: Any = model.base_model.layers
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda _module, _args, out: values.append(out[0]))
        for layer in layers
    ]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(ids[None], output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    totals = torch.zeros(len(ids), dtype=torch.float64)
    dim, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    for index in [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]:
        sizes = output.hidden_states[index][0].norm(dim=-1)
        for head, rows in enumerate(output.attentions[index][0]):
            first = head // group * dim
            own = values[index][:, first : first + dim]
            out = layers[index].self_attn.o_proj.weight[:, head * dim : (head + 1) * dim]
            for column in range(len(ids)):
                readers = rows[column + distance + 1 :]
                without = readers.clone()
                without[:, column] = 0
                change = (readers - without / (1 - readers[:, column, None])) @ own @ out.T
                totals[column] += (change.norm(dim=-1) / sizes[column + distance + 1 :]).square().sum()
    return totals.detach()


@pytest.mark.parametrize("kind", GATED)
def test_a_gate_behind_the_heads_has_no_deletion(kind):
    with pytest.raises(ValueError, match="gates what its heads give"):
        deletion_importance(build(kind), draw(60), TraceSpans(3, 40, 60))
