"""What this server was started with, as its processes find it."""

from typing import Any

from sglang.srt.runtime_context import get_context, get_disagg

from sgl_dynts.config import DynTSConfig
from sglang_dynts.names import BACKEND_NAME

PREFILLS, DECODES = "prefill", "decode"
"""Sides of disaggregation, by SGLang's names."""


def arguments() -> Any:
    """Return DynTS's server arguments, resolved: the fields of ``DynTSServerArgs``."""
    return get_context().config_bag(BACKEND_NAME)


def is_enabled() -> bool:
    """Whether this server was asked for DynTS."""
    return arguments().enable_dynts


def governs() -> bool:
    """Whether this server's schedulers have something to compact: not one that only computes prompts."""
    return is_enabled() and get_disagg().disaggregation_mode != PREFILLS


def gets_prompts() -> bool:
    """Whether prompts come to this server with their K and V, computed by another."""
    return get_disagg().disaggregation_mode == DECODES


def server_config() -> DynTSConfig:
    """Return the windows of requests that name none of their own."""
    ours = arguments()
    return DynTSConfig(
        ours.dynts_budget, ours.dynts_local_window, ours.dynts_keep_ratio, ours.dynts_min_selection
    )
