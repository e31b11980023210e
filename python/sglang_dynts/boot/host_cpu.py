"""SGLang on a plain CPU machine: an out-of-tree platform without Triton, graphs or AMX kernels."""

import os

import torch


def activate() -> str | None:
    """Name the platform class, or None where an accelerator or SGLang's own CPU engine serves.

    SGLang calls this while it is being imported, so nothing of it may be imported here.
    """
    if torch.accelerator.is_available() or os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return None
    return "sglang_dynts.boot.host_cpu_platform.HostCpuPlatform"
