"""Prefixes on the host: what their way back waits for, and how the host CPU copies them."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from sglang_dynts.boot.cpu import hierarchy
from tests.seam.engine import Engine

LATENTS = (hierarchy.back_up_latents, hierarchy.load_latent_layer)
HEADS = (hierarchy.back_up, hierarchy.load_layer)


def test_prefixes_come_after_moves_that_still_read_their_slots(serve, monkeypatch):
    serve("--attention-backend", "dynts")
    engine, done = Engine(), []
    monkeypatch.setattr(engine.device, "settle_moves", lambda: done.append("moved"))
    monkeypatch.setattr(
        UnifiedRadixCache, "ready_to_load_host_cache", lambda _cache: done.append("loads") or 7
    )
    assert engine.cache.ready_to_load_host_cache() == 7
    assert done == ["moved", "loads"]


def host_views(layout: str) -> list[torch.Tensor]:
    """Six tokens of two layers, by layer as SGLang views them."""
    whole = torch.zeros((2, 6, 1, 3) if layout == "layer_first" else (6, 2, 1, 3))
    return list(whole if layout == "layer_first" else whole.transpose(0, 1))


@pytest.mark.parametrize("layout", ["layer_first", "page_first"])
@pytest.mark.parametrize("copies", [HEADS, LATENTS], ids=["heads", "latents"])
def test_what_is_written_through_comes_back_layer_by_layer(layout, copies):
    torch.manual_seed(0)
    back_up, load_layer = copies
    pool = SimpleNamespace(
        layer_num=2,
        k_data_refs=host_views(layout),
        v_data_refs=host_views(layout),
        data_refs=host_views(layout),
        device_k_buffers=list(torch.randn(2, 9, 1, 3)),
        device_v_buffers=list(torch.randn(2, 9, 1, 3)),
        device_kv_buffers=list(torch.randn(2, 9, 1, 3)),
    )
    touched = [*pool.device_k_buffers, *pool.device_v_buffers]
    if copies is LATENTS:
        touched = pool.device_kv_buffers
    before = [buffer.clone() for buffer in touched]
    back_up(pool, None, torch.tensor([5, 0]), torch.tensor([3, 8]), "kernel")
    for layer in range(2):
        load_layer(pool, None, torch.tensor([0, 5]), torch.tensor([1, 2]), layer, "kernel")
    for old, new in zip(before, touched, strict=True):
        assert torch.equal(new[[1, 2]], old[[8, 3]])
        assert torch.equal(new[3:], old[3:])
