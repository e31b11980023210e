"""What this server was started with, as its processes find it."""

from typing import Any

from sglang.srt.runtime_context import get_context

from sgl_dynts.config import DynTSConfig
from sglang_dynts.names import BACKEND_NAME


def arguments() -> Any:
    """Return DynTS's server arguments, resolved: the fields of ``DynTSServerArgs``."""
    return get_context().config_bag(BACKEND_NAME)


def is_enabled() -> bool:
    """Whether this server was asked for DynTS."""
    return arguments().enable_dynts


def server_config() -> DynTSConfig:
    """Return the windows of requests that name none of their own."""
    ours = arguments()
    return DynTSConfig(
        ours.dynts_budget, ours.dynts_local_window, ours.dynts_keep_ratio, ours.dynts_min_selection
    )
