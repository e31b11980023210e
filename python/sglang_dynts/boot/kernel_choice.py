"""Attention kernels and page size of a server with DynTS where the operator named none."""

import logging

from sglang.srt.arg_groups.model_override_base import (
    get_default_attn_backend,
    model_config_of,
    use_mla_backend,
)
from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view

from sglang_dynts.names import BASE_BACKENDS, SOURCE, SUPPORTED_KERNELS

logger = logging.getLogger(__name__)


def choose_kernels(server_args, previous) -> None:
    """Resolution step ``handle_attention_backend_compatibility``: fill in before SGLang does.

    On some platforms SGLang's own choice is a kernel that needs pages of several tokens. What the
    operator named is left as it is, and refused later where it is not supported.
    """
    if resolving_view(server_args).enable_dynts:
        _choose(server_args)
    previous(server_args)


def _choose(server_args) -> None:
    cfg = resolving_view(server_args)
    usual = get_default_attn_backend(
        server_args, use_mla_backend(server_args), model_config_of(server_args)
    )
    if server_args.attention_backend is None:
        fitting = _fitting(cfg.attention_backend or usual, cfg.device)
        declare_resolution(server_args, SOURCE, attention_backend=fitting)
    if server_args.page_size is None:
        declare_resolution(server_args, SOURCE, page_size=1)
        logger.info("DynTS: page size 1, whatever the platform's is, because single tokens are freed")
    chosen = cfg.attention_backend
    if chosen not in (None, usual):
        logger.info("DynTS: %s attention; SGLang's own choice here would be %s", chosen, usual)


def _fitting(kernel: str, device: str) -> str:
    """Keep a kernel that serves compacted rows; where there is no other, ours is refused by name."""
    return kernel if kernel in SUPPORTED_KERNELS else BASE_BACKENDS.get(device, kernel)
