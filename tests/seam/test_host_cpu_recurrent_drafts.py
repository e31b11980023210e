"""Drafts beside a recurrent state, on the host CPU: each goes on from the one that it follows."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.qwen3_next import modeling_qwen3_next

from sglang_dynts.boot.cpu import recurrent, recurrent_drafts
from tests.seam.test_host_cpu_recurrent import (
    CHANNELS,
    HEADS,
    SLOTS,
    WIDTH,
    K,
    V,
    draw,
    expected_rule,
    parts_of,
)

# 0 ─┬─ 1 ─┬─ 3
#    │     └─ 4
#    └─ 2
TREE = [-1, 0, 0, 1, 1]
CHAIN = [-1, 0, 1, 2, 3]
NUM = len(TREE)
ROWS = torch.tensor([0, 1])
"""Where what each request's drafts left is kept."""
LINKS = torch.tensor([[1, 3, -1, -1, -1]] * 2), torch.tensor([[-1, 2, -1, 4, -1]] * 2)
BOTH = pytest.mark.parametrize("parents", [TREE, CHAIN], ids=["tree", "chain"])


def branch(parents: list[int], node: int) -> list[int]:
    """A node and all that it follows, the first one first."""
    return ([] if parents[node] < 0 else branch(parents, parents[node])) + [node]


def told(parents: list[int]) -> dict[str, torch.Tensor]:
    """What SGLang says of a tree, whom each follows to be written; of a chain it says nothing."""
    if parents is CHAIN:
        return {}
    names = ("retrieve_next_token", "retrieve_next_sibling", "retrieve_parent_token")
    return dict(zip(names, (*LINKS, torch.full((2, NUM), 77)), strict=True))


def test_whom_a_node_follows_is_read_from_children_and_siblings():
    assert recurrent_drafts.parents_of(LINKS[0][0], LINKS[1][0]) == TREE


@BOTH
def test_a_draft_is_convolved_with_its_own_branch(parents):
    states, weight, bias = draw(5, CHANNELS, WIDTH - 1), draw(CHANNELS, WIDTH), draw(CHANNELS)
    x, before = draw(2, CHANNELS, NUM), states.clone()
    kept, tree = torch.zeros(2, NUM, CHANNELS, WIDTH - 1), told(parents)
    found = recurrent_drafts.convolve_drafts(
        x,
        states,
        weight,
        bias,
        "silu",
        conv_state_indices=SLOTS,
        intermediate_conv_window=kept,
        intermediate_state_indices=ROWS,
        **tree,
    )
    assert torch.equal(states, before)
    for index, slot in enumerate(SLOTS.tolist()):
        for node in range(NUM):
            whole = torch.cat((before[slot], x[index][:, branch(parents, node)]), 1)
            expected = modeling_qwen3_next.causal_conv1d_fn(whole[None], weight, bias, activation="silu")
            torch.testing.assert_close(found[index, :, node], expected[0, :, -1])
            assert torch.equal(kept[index, node], whole[:, 1 - WIDTH :])
    if parents is TREE:
        assert tree["retrieve_parent_token"].tolist() == [[0, *TREE[1:]]] * 2


def test_a_token_that_is_no_draft_is_convolved_as_ever():
    x, weight = draw(2, CHANNELS), draw(CHANNELS, WIDTH)
    states = draw(5, CHANNELS, WIDTH - 1)
    alone = states.clone()
    expected = recurrent.convolve_newest(x, alone, weight, conv_state_indices=SLOTS)
    found = recurrent_drafts.convolve_drafts(x, states, weight, conv_state_indices=SLOTS)
    assert torch.equal(found, expected)
    assert torch.equal(states, alone)


@BOTH
def test_a_draft_reads_the_state_of_its_own_branch(parents):
    states = draw(5, HEADS, V, K)
    before, kept = states.clone(), torch.zeros(2, NUM, HEADS, V, K)
    q, k, v, _, _ = parts_of(2 * NUM)
    a, b = draw(2 * NUM, HEADS), draw(2 * NUM, HEADS, seed=1)
    a_log, dt_bias = draw(HEADS), draw(HEADS, seed=1)
    found = recurrent_drafts.delta_rule_drafts(
        A_log=a_log,
        a=a,
        dt_bias=dt_bias,
        q=q,
        k=k,
        v=v,
        b=b,
        initial_state_source=states,
        initial_state_indices=SLOTS,
        intermediate_states_buffer=kept,
        intermediate_state_indices=ROWS,
        cache_steps=NUM,
        retrieve_parent_token=None if parents is CHAIN else torch.tensor([[0, *TREE[1:]]] * 2),
    )
    assert torch.equal(states, before)
    g, beta = recurrent.gate(a_log, a, b, dt_bias)
    for index, slot in enumerate(SLOTS.tolist()):
        for node in range(NUM):
            own = [index * NUM + other for other in branch(parents, node)]
            some = [part[:, own] for part in (q, k, v, g, beta)]
            rule = modeling_qwen3_next.torch_recurrent_gated_delta_rule
            expected, last = expected_rule(rule, some, before[slot])
            torch.testing.assert_close(found[:, own[-1]], expected[:, -1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(kept[index, node], last, rtol=1e-4, atol=1e-5)


def test_a_request_goes_on_from_the_last_draft_that_was_accepted():
    """The first request's second draft was the last; nothing was of the second request."""
    layers, states, windows = 2, draw(2, 5, 3, 4), draw(2, 5, 6)
    after, after_windows = draw(layers, 2, NUM, 3, 4), draw(layers, 2, NUM, 6)
    caches = SimpleNamespace(
        temporal=states.clone(),
        intermediate_ssm=after,
        conv=[windows.clone()],
        intermediate_conv_window=[after_windows],
    )
    recurrent_drafts.go_on_from_accepted(
        caches, SLOTS, torch.tensor([1, -1]), torch.tensor([4, 2]), torch.tensor([-1, 3])
    )
    for found, old, new in (
        (caches.temporal, states, after),
        (caches.conv[0], windows, after_windows),
    ):
        assert torch.equal(found[:, 3], new[:, 0, 1])
        assert torch.equal(found[:, 2], new[:, 1, 3])
        assert torch.equal(found[:, [0, 1, 4]], old[:, [0, 1, 4]])
