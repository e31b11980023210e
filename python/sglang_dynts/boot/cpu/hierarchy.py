"""The hierarchical cache on the host CPU: prefixes are copied between two pools that are host memory.

SGLang 0.5.23 has these copies as GPU kernels alone. Pages have one token.
"""

import sglang.srt.mem_cache.pool_host.base as host_pools
import torch
from sglang.srt.mem_cache.pool_host.base import HICACHE_HOST_MEMORY_RESERVE_BYTES
from sglang.srt.mem_cache.pool_host.common import ALLOC_MEMORY_FUNCS
from sglang.srt.plugins.hook_registry import HookType

from sglang_dynts import seams
from sglang_dynts.seams import Seam

RESERVE_BYTES = 1 << 30
"""Host memory that prefixes leave free. SGLang leaves 10 GiB, which a small machine does not have."""


def allocate(
    dims, dtype, device, pin_memory=False, allocator=None, registration_granularity_bytes=None
) -> torch.Tensor:
    """Allocate a host pool that no device has to reach, for SGLang's table of allocators."""
    return torch.zeros(dims, dtype=dtype, device=device)


def load_layer(pool, _device_pool, host_indices, device_indices, layer_id, _io_backend, **_draft) -> None:
    """REPLACE MHATokenToKVPoolHost.load_to_device_per_layer: K and V of one layer come back."""
    host, device = host_indices.long(), device_indices.long()
    pool.device_k_buffers[layer_id][device] = pool.k_data_refs[layer_id][host]
    pool.device_v_buffers[layer_id][device] = pool.v_data_refs[layer_id][host]


def back_up(pool, _device_pool, host_indices, device_indices, _io_backend) -> None:
    """REPLACE MHATokenToKVPoolHost.backup_from_device_all_layer: K and V are written through."""
    host, device = host_indices.long(), device_indices.long()
    for layer_id in range(pool.layer_num):
        pool.k_data_refs[layer_id][host] = pool.device_k_buffers[layer_id][device]
        pool.v_data_refs[layer_id][host] = pool.device_v_buffers[layer_id][device]


def load_latent_layer(
    pool, _device_pool, host_indices, device_indices, layer_id, _io_backend, **_draft
) -> None:
    """REPLACE MLATokenToKVPoolHost.load_to_device_per_layer: latents of one layer come back."""
    pool.device_kv_buffers[layer_id][device_indices.long()] = pool.data_refs[layer_id][
        host_indices.long()
    ]


def back_up_latents(pool, _device_pool, host_indices, device_indices, _io_backend) -> None:
    """REPLACE MLATokenToKVPoolHost.backup_from_device_all_layer: latents are written through."""
    host, device = host_indices.long(), device_indices.long()
    for layer_id in range(pool.layer_num):
        pool.data_refs[layer_id][host] = pool.device_kv_buffers[layer_id][device]


def scheduler_seams() -> list[Seam]:
    """Return what a scheduler on the host CPU needs in place for a hierarchical cache."""
    ALLOC_MEMORY_FUNCS["cpu"] = allocate
    host_pools.HICACHE_HOST_MEMORY_RESERVE_BYTES = min(RESERVE_BYTES, HICACHE_HOST_MEMORY_RESERVE_BYTES)
    replaced = {
        seams.LOAD_PREFIXES: load_layer,
        seams.BACK_UP_PREFIXES: back_up,
        seams.LOAD_LATENTS: load_latent_layer,
        seams.BACK_UP_LATENTS: back_up_latents,
    }
    return [Seam(target, hook, HookType.REPLACE) for target, hook in replaced.items()]
