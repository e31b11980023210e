"""SGLang on a plain CPU machine: an out-of-tree platform without Triton, graphs or AMX kernels."""

import os
import sys

import torch

from sglang_dynts.names import BACKEND_NAME, ENABLE_FLAG

SPAWNED = "--multiprocessing-fork"
"""What Python starts a child with; it gets its parent's arguments."""


def activate() -> str | None:
    """Name the platform class, or None where an accelerator or SGLang's own CPU engine serves.

    SGLang calls this while it is being imported, so nothing of it may be imported here.
    """
    _say_that_it_takes_long()
    if torch.accelerator.is_available() or os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return None
    return "sglang_dynts.boot.cpu.platform.HostCpuPlatform"


def _say_that_it_takes_long() -> None:
    """Break the silence of a start that asks for DynTS, in its first process."""
    asks = {BACKEND_NAME, ENABLE_FLAG, f"--attention-backend={BACKEND_NAME}"} & set(sys.argv)
    if asks and SPAWNED not in sys.orig_argv:
        sys.stderr.write("DynTS: SGLang is being imported, which takes some seconds more.\n")
        sys.stderr.flush()
