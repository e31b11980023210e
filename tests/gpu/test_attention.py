"""Attention as the bench times it: FlashInfer over scattered slots gives what torch gives."""

import pytest
import torch

from benchmark.gpu.attention import flashinfer_decode, slots_after, torch_decode
from benchmark.gpu.timing import captured
from benchmark.harness.shapes import roofline_shape
from sgl_dynts.config import DynTSConfig
from sgl_dynts.roofline import SHAPES


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_flashinfer_attends_to_the_slots_that_compactions_left(name):
    shape, dtype, device = roofline_shape(name), torch.bfloat16, torch.device("cuda")
    slots = slots_after(DynTSConfig(200, 80, 0.4), batch=5, pool_tokens=2000, rounds=3).to(device)
    keys, values = (
        torch.randn(2001, shape.num_kv_heads, shape.head_dim, dtype=dtype, device=device)
        for _ in range(2)
    )
    queries = torch.randn(5, shape.num_heads, shape.head_dim, dtype=dtype, device=device)
    wanted = torch_decode(slots)(queries.float(), keys.float(), values.float())
    attend, found = flashinfer_decode(shape, slots, dtype), torch.empty_like(queries)
    replay = captured(lambda: found.copy_(attend(queries, keys, values)), device)
    found.zero_()
    replay()
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=1e-2)
