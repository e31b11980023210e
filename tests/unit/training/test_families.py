"""Targets of models of every family, compared with attention that Hugging Face's code returns whole."""

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

SPANS = TraceSpans(thinking_start=7, thinking_end=110, length=190)
DISTANCE = 20
LLAMA_LIKE = ("changes_its_mind", "llama", "qwen2", "qwen3")
"""Of test_importance."""
WINDOWED = ("mistral", "phi3")
"""Hugging Face's code gives every layer a window, and names no kinds of layers."""
FAMILIES = [kind for kind in CONFIGS if kind not in (*LLAMA_LIKE, *WINDOWED)]


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
    full = [rows for rows, kind in zip(layers, kinds, strict=True) if kind == "full_attention"]
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
    for importance in (
        deletion_importance(model, ids, SPANS, DISTANCE),
        gradient_importance(model, ids, SPANS),
    ):
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


def test_the_sizes_that_deletion_compares_with_survive_a_softcap_and_sinks():
    """Deleting by hand, in the last layer of one head's attention with a sink and a cap."""
