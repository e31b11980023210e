"""The host CPU's attention is that of Hugging Face, for what SGLang's torch kernels leave out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers import logits_processor
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from sglang_dynts.boot.cpu.attention import HostCpuAttention
from sglang_dynts.boot.cpu.draft_attention import DraftingAttention
from sglang_dynts.boot.cpu.kernels import cap_logits
from sglang_dynts.boot.cpu.platform import HostCpuPlatform

HEADS, KV_HEADS, DIM = 4, 2, 8
LENS = (5, 11, 30)
SLOTS = torch.randperm(100, generator=torch.Generator().manual_seed(3))[:90].view(3, 30)


class Pool:
    """K and V of 100 slots, those of a request's tokens at the slots of its row."""

    def __init__(self, kv_heads: int = KV_HEADS, dim: int = DIM, v_dim: int = DIM) -> None:
        draw = torch.Generator().manual_seed(5)
        self.keys = torch.randn(100, kv_heads, dim, generator=draw)
        self.values = torch.randn(100, kv_heads, v_dim, generator=draw)

    def get_key_buffer(self, _layer: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, _layer: int) -> torch.Tensor:
        return self.values

    def set_kv_buffer(self, _layer, places, k, v) -> None:
        self.keys[places.loc], self.values[places.loc] = k, v


def backend_of(pool: Pool) -> HostCpuAttention:
    rows = SimpleNamespace(req_to_token=SLOTS)
    runner: Any = SimpleNamespace(device="cpu", req_to_token_pool=rows, token_to_kv_pool=pool)
    return HostCpuAttention(runner)


def layer_of(**facts) -> RadixAttention:
    return RadixAttention(HEADS, DIM, DIM**-0.5, KV_HEADS, layer_id=0, **facts)


def batch_of(new: tuple[int, ...]) -> Any:
    """Requests that hold ``LENS`` tokens, the last ``new`` of them computed now."""
    prefixes = [held - num for held, num in zip(LENS, new, strict=True)]
    return SimpleNamespace(
        forward_mode=ForwardMode.EXTEND,
        req_pool_indices=torch.arange(3),
        seq_lens=torch.tensor(LENS),
        extend_seq_lens=torch.tensor(new),
        extend_seq_lens_cpu=list(new),
        extend_prefix_lens=torch.tensor(prefixes),
        extend_prefix_lens_cpu=prefixes,
        out_cache_loc=torch.cat(
            [SLOTS[i, p : p + n] for i, (p, n) in enumerate(zip(prefixes, new, strict=True))]
        ),
        encoder_lens=None,
    )


def expected_of(
    modeling, query, keys, values, window: int = -1, module: Any = None, **more
) -> torch.Tensor:
    """Hugging Face's eager attention of one request: [n, heads * v_dim]."""
    num, held = len(query), len(keys)
    at, columns = torch.arange(held - num, held)[:, None], torch.arange(held)[None]
    seen = (columns <= at) & ((window < 0) | (columns >= at - window))
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    parts = (some.transpose(0, 1)[None] for some in (query, keys, values))
    module = module or SimpleNamespace()
    module.num_key_value_groups, module.training = query.shape[1] // keys.shape[1], False
    found, _ = modeling.eager_attention_forward(module, *parts, mask, scaling=DIM**-0.5, **more)
    return found[0].reshape(num, -1)


CASES = {
    "capped": ({"logit_cap": 2.0}, modeling_gemma2, {"softcap": 2.0}, False),
    "capped_and_sliding": (
        {"logit_cap": 2.0, "sliding_window_size": 6},
        modeling_gemma2,
        {"softcap": 2.0},
        False,
    ),
    "sinks": ({}, modeling_gpt_oss, {}, True),
    "sinks_and_sliding": ({"sliding_window_size": 6}, modeling_gpt_oss, {}, True),
    "sliding": ({"sliding_window_size": 6}, modeling_gemma2, {}, False),
}


@pytest.mark.parametrize("new", [(5, 11, 30), (2, 7, 30), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_kind_of_attention_is_that_of_hugging_face(case, new):
    facts, modeling, more, has_sinks = CASES[case]
    pool, layer, batch = Pool(), layer_of(**facts), batch_of(new)
    sinks = torch.randn(HEADS) if has_sinks else None
    query = torch.randn(sum(new), HEADS, DIM)
    k, v = torch.randn(sum(new), KV_HEADS, DIM), torch.randn(sum(new), KV_HEADS, DIM)
    told: Any = {} if sinks is None else {"sinks": sinks}
    forward = backend_of(pool).forward_decode if max(new) == 1 else backend_of(pool).forward_extend
    found = forward(query.flatten(1), k, v, layer, batch, **told).split(new)
    for index, (part, one) in enumerate(zip(query.split(new), found, strict=True)):
        slots = SLOTS[index, : LENS[index]]
        module = SimpleNamespace(sinks=sinks) if has_sinks else None
        window = facts.get("sliding_window_size", -1)
        expected = expected_of(
            modeling, part, pool.keys[slots], pool.values[slots], window, module, **more
        )
        torch.testing.assert_close(one, expected)


def test_a_latent_prefill_attends_to_the_keys_that_it_was_given():
    """As many heads of K as of queries, values of another width, nothing of it in the pool."""
    dim_v, pool = 6, Pool(kv_heads=1, dim=20, v_dim=16)
    layer = RadixAttention(HEADS, DIM, DIM**-0.5, HEADS, layer_id=0, v_head_dim=dim_v)
    batch = batch_of(LENS)
    query, k = torch.randn(sum(LENS), HEADS, DIM), torch.randn(sum(LENS), HEADS, DIM)
    v = torch.randn(sum(LENS), HEADS, dim_v)
    found = backend_of(pool).forward_extend(query.flatten(1), k, v, layer, batch, save_kv_cache=False)
    parts = zip(query.split(LENS), k.split(LENS), v.split(LENS), found.split(LENS), strict=True)
    for a, b, c, one in parts:
        torch.testing.assert_close(one, expected_of(modeling_deepseek_v3, a, b, c))


def test_what_sglang_serves_is_left_to_it(monkeypatch):
    asked = []
    monkeypatch.setattr(TorchNativeAttnBackend, "forward_decode", lambda *_: asked.append("decode"))
    monkeypatch.setattr(TorchNativeAttnBackend, "forward_extend", lambda *_: asked.append("extend"))
    backend, layer = backend_of(Pool()), layer_of()
    nothing: Any = None
    backend.forward_decode(nothing, nothing, nothing, layer, nothing)
    backend.forward_extend(nothing, nothing, nothing, layer, batch_of(LENS))
    assert asked == ["decode", "extend"]


def test_the_platform_puts_it_in_place(monkeypatch):
    for name in ("torch_native", "triton"):
        monkeypatch.delitem(ATTENTION_BACKENDS, name)
    HostCpuPlatform().init_backend()
    assert ATTENTION_BACKENDS["torch_native"] is ATTENTION_BACKENDS["triton"] is DraftingAttention
    assert logits_processor.fused_softcap is cap_logits


def test_logits_are_capped_in_place_as_gemma_2_caps_them():
    logits = torch.tensor([-90.0, 0.0, 0.5, 30.0])
    assert cap_logits(logits, 30.0) is logits
    torch.testing.assert_close(logits, 30 * torch.tanh(torch.tensor([-3.0, 0.0, 1 / 60, 1.0])))
