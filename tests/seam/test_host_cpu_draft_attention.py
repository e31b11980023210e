"""The host CPU's attention of drafts is what loops over their branches give."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_dynts.boot.cpu.draft_attention import DraftingAttention, DraftStepAttention

TABLE = torch.arange(100, 140).view(4, 10)


class Pool:
    """K and V of one head of two channels, by slot."""

    def __init__(self) -> None:
        self.k, self.v = torch.randn(140, 1, 2), torch.randn(140, 1, 2)

    def get_key_buffer(self, _layer: int) -> torch.Tensor:
        return self.k

    def get_value_buffer(self, _layer: int) -> torch.Tensor:
        return self.v

    def set_kv_buffer(self, _layer, location, k, v) -> None:
        self.k[location.loc], self.v[location.loc] = k.view(-1, 1, 2), v.view(-1, 1, 2)


def attend(query: torch.Tensor, pool: Pool, slots: list[int], layer: Any, sinks=None) -> torch.Tensor:
    """One query's attention; ``slots`` in the order of the text, the query's own last."""
    window = layer.sliding_window_size
    slots = slots if window < 0 else slots[-window - 1 :]
    logits = pool.k[slots, 0] @ query
    if layer.logit_cap:
        logits = layer.logit_cap * torch.tanh(logits / layer.logit_cap)
    if sinks is not None:
        logits = torch.cat((logits, sinks))
    return logits.softmax(0)[: len(slots)] @ pool.v[slots, 0]


def runner_of(pool: Pool) -> Any:
    rows = SimpleNamespace(req_to_token=TABLE)
    return SimpleNamespace(device="cpu", token_to_kv_pool=pool, req_to_token_pool=rows)


PLAIN = {
    "layer_id": 0,
    "scaling": 1.0,
    "tp_q_head_num": 1,
    "tp_k_head_num": 1,
    "qk_head_dim": 2,
    "logit_cap": 0.0,
    "sliding_window_size": -1,
}
LAYERS = {
    "plain": SimpleNamespace(**PLAIN),
    "capped": SimpleNamespace(**PLAIN | {"logit_cap": 0.5}),
    "sliding": SimpleNamespace(**PLAIN | {"sliding_window_size": 2}),
    "sliding_and_capped": SimpleNamespace(**PLAIN | {"sliding_window_size": 1, "logit_cap": 0.5}),
}
SINKS = {"no sinks": None, "sinks": torch.tensor([0.7])}


@pytest.mark.parametrize("sinks", SINKS.values(), ids=SINKS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_token_that_is_verified_sees_the_window_and_its_own_branch(layer, sinks):
    torch.manual_seed(0)
    pool, num = Pool(), 3
    tree = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    whole = [torch.cat((torch.ones(num, n, dtype=torch.bool), tree), 1).flatten() for n in (4, 2)]
    batch = SimpleNamespace(
        forward_mode=SimpleNamespace(is_target_verify=lambda: True),
        seq_lens=torch.tensor([4, 2]),
        req_pool_indices=torch.tensor([3, 1]),
        spec_info=SimpleNamespace(custom_mask=torch.cat(whole)),
        out_cache_loc=torch.tensor([134, 135, 136, 112, 113, 114]),
    )
    q, k, v = torch.randn(3, 6, 2)
    found = DraftingAttention(runner_of(pool)).forward_extend(q, k, v, layer, batch, sinks=sinks)
    assert torch.equal(pool.k[batch.out_cache_loc, 0], k)
    for at, (first, length) in enumerate(((130, 4), (110, 2))):
        for node in range(num):
            branch = [first + length + other for other in range(num) if tree[node, other]]
            slots = [*range(first, first + length), *branch]
            expected = attend(q[at * num + node], pool, slots, layer, sinks)
            torch.testing.assert_close(found[at * num + node], expected)


@pytest.mark.parametrize("sinks", SINKS.values(), ids=SINKS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_draft_sees_what_its_own_branch_drafted_before(layer, sinks):
    torch.manual_seed(0)
    pool = Pool()
    step = DraftStepAttention(runner_of(pool), step=1, num_steps=2)
    batch = SimpleNamespace(
        seq_lens=torch.tensor([4]),
        req_pool_indices=torch.tensor([3]),
        out_cache_loc=torch.tensor([135, 137]),
    )
    q, k, v = torch.randn(3, 2, 2)
    found = step.forward_decode(q, k, v, layer, batch, sinks=sinks)
    for branch, own in enumerate(([134, 135], [136, 137])):
        expected = attend(q[branch], pool, [*range(130, 134), *own], layer, sinks)
        torch.testing.assert_close(found[branch], expected)
