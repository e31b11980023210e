"""The host CPU's recurrent layers are those of Hugging Face: each stand-in, then whole layers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_next import modeling_qwen3_next

from sglang_dynts.boot.cpu import recurrent
from tests.e2e.models import CONFIGS

KEY_HEADS, HEADS, K, V = 2, 4, 16, 8
CHANNELS, WIDTH = 10, 4
SLOTS = torch.tensor([3, 1])
"""Of two requests."""


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def convolve(x, weight, bias, states, lens: list[int], begun: list[bool], activation="silu"):
    return recurrent.convolve(
        x,
        weight,
        bias,
        conv_states=states,
        cache_indices=SLOTS,
        has_initial_state=torch.tensor(begun),
        seq_lens_cpu=lens,
        activation=activation,
        query_start_loc=None,
    )


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_convolution_of_parts_is_that_of_the_whole(has_bias, activation):
    """Prefills of 7 and 2 tokens, then of 1 and 5, then a decode step; the states held other numbers."""
    weight, bias = draw(CHANNELS, WIDTH), draw(CHANNELS) if has_bias else None
    texts = [draw(CHANNELS, 9, seed=1), draw(CHANNELS, 8, seed=2)]
    states = draw(5, CHANNELS, WIDTH - 1)
    whole = [
        modeling_qwen3_next.causal_conv1d_fn(text[None], weight, bias, activation=activation)[0]
        for text in texts
    ]
    cuts = ((0, 7), (7, 8)), ((0, 2), (2, 7))
    for part in (0, 1):
        pieces = [text[:, slice(*cut[part])] for text, cut in zip(texts, cuts, strict=True)]
        lens = [piece.shape[1] for piece in pieces]
        found = convolve(
            torch.cat(pieces, 1), weight, bias, states, lens, [part > 0] * 2, activation
        ).split(lens, 1)
        for one, expected, cut in zip(found, whole, cuts, strict=True):
            torch.testing.assert_close(one, expected[:, slice(*cut[part])])
    newest = torch.stack([texts[0][:, 8], texts[1][:, 7]])
    found = recurrent.convolve_newest(
        newest, states, weight, bias, activation, conv_state_indices=SLOTS.int()
    )
    torch.testing.assert_close(found, torch.stack([whole[0][:, 8], whole[1][:, 7]]))
    torch.testing.assert_close(states[3], texts[0][:, 6:])


def parts_of(num: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """q, k, v, logarithms of what stays, and shares that are written, of ``num`` tokens."""
    q, k = draw(1, num, KEY_HEADS, K, seed=seed), draw(1, num, KEY_HEADS, K, seed=seed + 1)
    v = draw(1, num, HEADS, V, seed=seed)
    g = -draw(1, num, HEADS, seed=seed).abs()
    return q, k, v, g, draw(1, num, HEADS, seed=seed + 1).sigmoid()


def expected_rule(rule, parts, state=None):
    """Hugging Face's, whose states are [1, h, K, V]."""
    q, k, v, g, beta = parts
    q, k = (some.repeat_interleave(HEADS // KEY_HEADS, 2) for some in (q, k))
    state = None if state is None else state.transpose(-1, -2)[None]
    found, last = rule(
        q,
        k,
        v,
        g=g,
        beta=beta,
        initial_state=state,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    return found, last[0].transpose(-1, -2)


def test_the_delta_rule_of_two_prefills_is_hugging_faces_by_chunks_and_by_tokens():
    states, lens = draw(5, HEADS, V, K), (150, 30)
    before = states.clone()
    parts = [parts_of(num, seed) for seed, num in enumerate(lens)]
    found, nothing, chunks = recurrent.delta_rule(
        *(torch.cat(some, 1) for some in zip(*parts, strict=True)),
        initial_state=states,
        initial_state_indices=SLOTS,
        cu_seqlens=torch.tensor([0, 150, 180]),
        use_qk_l2norm_in_kernel=True,
    )
    assert nothing is None
    for rule in (
        modeling_qwen3_next.torch_chunk_gated_delta_rule,
        modeling_qwen3_next.torch_recurrent_gated_delta_rule,
    ):
        for one, some, slot in zip(found.split(lens, 1), parts, SLOTS.tolist(), strict=True):
            expected, last = expected_rule(rule, some, before[slot])
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(states[slot], last, rtol=1e-4, atol=1e-5)
    untouched = [0, 2, 4]
    assert torch.equal(states[untouched], before[untouched])
    assert chunks.shape == (1, 3 + 1, HEADS, V, K)  # of 150 tokens three, of 30 one
    first_64 = [some[:, :64] for some in parts[0]]
    _, after_64 = expected_rule(modeling_qwen3_next.torch_chunk_gated_delta_rule, first_64, before[3])
    torch.testing.assert_close(chunks[0, 1], after_64, rtol=1e-4, atol=1e-5)
    assert torch.equal(chunks[0, 3], before[1])


def test_a_token_of_two_requests_is_a_prefill_of_one_token_each():
    num = 2
    q, k, v, _, _ = parts_of(num)
    a, b, a_log, dt_bias = draw(num, HEADS), draw(num, HEADS, seed=1), draw(HEADS), draw(HEADS, seed=1)
    states = draw(5, HEADS, V, K)
    alone, out = states.clone(), torch.empty(num, 1, HEADS, V)
    g, beta = recurrent.gate(a_log, a, b, dt_bias)
    expected, _, _ = recurrent.delta_rule(
        q,
        k,
        v,
        g,
        beta,
        initial_state=alone,
        initial_state_indices=SLOTS,
        cu_seqlens=torch.tensor([0, 1, 2]),
    )
    mixed = torch.cat([some[0].flatten(1) for some in (q, k, v)], 1)
    found, advanced = recurrent.delta_rule_newest(
        mixed, a, b, a_log, dt_bias, K**-0.5, states, out, SLOTS.int(), use_qk_l2norm_in_kernel=True
    )
    assert found is out
    assert advanced is states
    torch.testing.assert_close(out[:, 0], expected[0])
    torch.testing.assert_close(states, alone)


def layer_of(modeling, name: str, kind: str) -> tuple[Any, Any]:
    """A layer of Hugging Face's with random weights, and its configuration."""
    config = CONFIGS[kind].get_text_config()
    torch.manual_seed(7)
    layer = getattr(modeling, name)(config, layer_idx=0).float()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return layer, config


LAYERS = {
    "qwen3_next": (modeling_qwen3_next, "Qwen3NextGatedDeltaNet", recurrent.split_by_group),
    "qwen3_5_text": (modeling_qwen3_5, "Qwen3_5GatedDeltaNet", recurrent.split_in_order),
}


def projected(layer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What SGLang hands on of a layer's projections: the gates' inputs come last."""
    if hasattr(layer, "in_proj_qkvz"):
        return layer.in_proj_qkvz(x), layer.in_proj_ba(x)
    wide = torch.cat([layer.in_proj_qkv(x), layer.in_proj_z(x)], -1)
    return wide, torch.cat([layer.in_proj_b(x), layer.in_proj_a(x)], -1)


@pytest.mark.parametrize("kind", LAYERS)
@torch.inference_mode()
def test_a_whole_layer_is_hugging_faces(kind):
    modeling, name, split = LAYERS[kind]
    layer, config = layer_of(modeling, name, kind)
    x, num = draw(20, config.hidden_size), 20
    sizes = (config.linear_num_key_heads, config.linear_num_value_heads)
    dims = (config.linear_key_head_dim, config.linear_value_head_dim)
    mixed, z, b, a = split(*projected(layer, x), *sizes, *dims)
    states = torch.zeros(4, mixed.shape[1], WIDTH - 1)
    mixed = recurrent.convolve(
        mixed.T,
        layer.conv1d.weight.squeeze(1),
        None,
        conv_states=states,
        cache_indices=SLOTS[:1],
        has_initial_state=torch.tensor([False]),
        seq_lens_cpu=[num],
        activation="silu",
    ).T
    keys = sizes[0] * dims[0]
    q, k, v = mixed.split([keys, keys, sizes[1] * dims[1]], 1)
    g, beta = recurrent.gate(layer.A_log, a, b, layer.dt_bias)
    found, _, _ = recurrent.delta_rule(
        q.reshape(1, num, -1, dims[0]),
        k.reshape(1, num, -1, dims[0]),
        v.reshape(1, num, -1, dims[1]),
        g,
        beta,
        initial_state=torch.zeros(4, sizes[1], dims[1], dims[0]),
        initial_state_indices=SLOTS[:1],
        cu_seqlens=torch.tensor([0, num]),
    )
    norm = SimpleNamespace(
        weight=layer.norm.weight, eps=layer.norm.variance_epsilon, activation=config.hidden_act
    )
    found = recurrent.norm_then_gate(norm, found[0].flatten(0, 1), z.flatten(0, 1))
    torch.testing.assert_close(
        layer.out_proj(found.view(num, -1)), layer(x[None])[0], rtol=1e-4, atol=1e-5
    )


@torch.inference_mode()
def test_a_shared_expert_adds_what_hugging_faces_adds():
    torch.manual_seed(7)
    config = CONFIGS["qwen3_next"]
    block = modeling_qwen3_next.Qwen3NextSparseMoeBlock(config)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x = draw(6, config.hidden_size)
    whole = block(x[None])[0]
    shared = block.shared_expert(x)
    block.shared_expert.down_proj.weight.zero_()
    output = block(x[None])[0]
    alone = torch.empty_like(x)
    gate = block.shared_expert_gate.weight[0]
    recurrent.add_shared_expert(x, gate, shared, alone, do_add=False)
    torch.testing.assert_close(output + alone, whole)
    recurrent.add_shared_expert(x, gate, shared, output, do_add=True)
    torch.testing.assert_close(output, whole)


def test_attention_is_gated_by_a_sigmoid():
    attention = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    gates = torch.tensor([[[0.0, 100.0], [-100.0, 0.0]]])
    found = recurrent.gate_by_sigmoid(attention, gates)
    torch.testing.assert_close(found, torch.tensor([[0.5, 2.0, 0.0, 2.0]]))
    assert attention[0, 0] == 1.0
    assert recurrent.gate_by_sigmoid(attention, gates, inplace=True) is attention
    torch.testing.assert_close(attention, found)


def test_a_gated_norm_may_gate_with_a_sigmoid():
    norm = SimpleNamespace(weight=torch.tensor([1.0, 2.0]), eps=0.0, activation="sigmoid")
    found = recurrent.norm_then_gate(norm, torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
    torch.testing.assert_close(found, torch.tensor([[3.0, 8.0]]) / 12.5**0.5 / 2)


def test_states_are_kept_of_whom_it_is_time_for():
    conv, ssm = draw(2, 6, CHANNELS, 3), draw(2, 6, HEADS, V, K)
    before = conv.clone(), ssm.clone()
    recurrent.keep_states(
        conv, ssm, torch.tensor([1, 2, 3]), torch.tensor([True, False, True]), torch.tensor([4, 0, 5]), 3
    )
    for states, old in zip((conv, ssm), before, strict=True):
        assert torch.equal(states[:, [4, 5]], old[:, [1, 3]])
        assert torch.equal(states[:, :4], old[:, :4])


def test_a_layer_is_made_on_the_cpu_and_torch_is_left_as_it_was():
    found, asked = torch.get_device_module, []

    def make(*args) -> None:
        asked.append((*args, torch.get_device_module().current_device()))
        raise ValueError("of the layer")

    with pytest.raises(ValueError, match="of the layer"):
        recurrent.make_on_cpu(make, "layer", 3)
    assert asked == [("layer", 3, "cpu")]
    assert torch.get_device_module is found
