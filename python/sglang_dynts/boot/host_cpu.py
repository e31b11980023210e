"""SGLang on a plain CPU machine: an out-of-tree platform without Triton, graphs or AMX kernels."""

import os
import sys
from itertools import pairwise
from pathlib import Path

import torch

from sgl_dynts.harness.server import ServerError, check_home
from sglang_dynts.names import BACKEND_NAME, ENABLE_FLAG

CONFIG = "--config"
SPAWNED = "--multiprocessing-fork"
"""What Python starts a child with; it gets its parent's arguments."""


def activate() -> str | None:
    """Name the platform class, or None where an accelerator or SGLang's own CPU engine serves.

    SGLang calls this while it is being imported, so nothing of it may be imported here.
    """
    if SPAWNED not in sys.orig_argv and _asks_for_dynts():
        _begin()
    if torch.accelerator.is_available() or os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return None
    return "sglang_dynts.boot.cpu.platform.HostCpuPlatform"


def _asks_for_dynts() -> bool:
    """Whether the command line does, or the configuration file that it names."""
    words = sys.argv[1:]
    if {BACKEND_NAME, ENABLE_FLAG, f"--attention-backend={BACKEND_NAME}"} & set(words):
        return True
    behind = [after for word, after in pairwise(words) if word == CONFIG]
    joined = [word.removeprefix(f"{CONFIG}=") for word in words if word.startswith(f"{CONFIG}=")]
    return any(names_dynts(Path(name)) for name in (*behind, *joined))


def names_dynts(path: Path) -> bool:
    """Whether a configuration file asks for DynTS; not where it cannot be read."""
    try:
        return BACKEND_NAME in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _begin() -> None:
    """Break the silence of a start, in its first process, or end it where it would fail."""
    try:
        check_home({})
    except ServerError as error:
        sys.exit(f"DynTS: {error}")
    sys.stderr.write("DynTS: SGLang is being imported, which takes some seconds more.\n")
    sys.stderr.flush()
