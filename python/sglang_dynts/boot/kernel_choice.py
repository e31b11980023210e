"""Attention kernels and page size of a server with DynTS where the operator named none."""

import logging

from sglang.srt.arg_groups.model_override_base import (
    get_default_attn_backend,
    model_config_of,
    use_mla_backend,
)
from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
from sglang.srt.runtime_context import get_platform

from sglang_dynts.names import BASE_BACKENDS, SOURCE, SUPPORTED_KERNELS

logger = logging.getLogger(__name__)

STARTED_BY_NAME = {"Exaone4ForCausalLM", "ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"}
"""Architectures that SGLang starts with fa3, Triton or trtllm_mha alone: ``arg_groups/model_hook.py``."""


def meant_by_dynts(device: str, model_config) -> str:
    """Return the kernels that ``--attention-backend dynts`` means.

    FlashInfer's backend takes no attention sinks, and SGLang 0.5.23 wants other names for some models:
    for gpt-oss ``arg_groups/model_hook.py:522`` lists those that it starts with, FlashInfer not among
    them, and ``arg_groups/model_overrides/gpt_oss.py:29`` chooses fa3 on Hopper, trtllm_mha on Blackwell,
    which has no page size of 1, and Triton elsewhere. For Step-3.5 ``arg_groups/overrides.py:344`` has
    fa3 on Hopper too; FlashInfer was not tried with two KV pools. On the host CPU all names are torch.

    Args:
        device: one of ``BASE_BACKENDS``.
        model_config: SGLang's configuration of the model.
    """
    named = STARTED_BY_NAME.intersection(model_config.hf_config.architectures or ())
    if not (model_config.has_attention_sinks or model_config.is_hybrid_swa or named):
        return BASE_BACKENDS[device]
    return "fa3" if device == "cuda" and get_platform().is_hopper_with_cuda_12_3 else "triton"


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
        wanted = cfg.attention_backend or usual
        fitting = wanted if wanted in SUPPORTED_KERNELS else _ours(cfg.device, server_args) or wanted
        declare_resolution(server_args, SOURCE, attention_backend=fitting)
    if server_args.page_size is None:
        declare_resolution(server_args, SOURCE, page_size=1)
        logger.info("DynTS: page size 1, whatever the platform's is, because single tokens are freed")
    chosen = cfg.attention_backend
    if chosen not in (None, usual):
        logger.info("DynTS: %s attention; SGLang's own choice here would be %s", chosen, usual)


def _ours(device: str, server_args) -> str | None:
    """Our kernels on a device; where there are none, SGLang's are refused by name."""
    return meant_by_dynts(device, model_config_of(server_args)) if device in BASE_BACKENDS else None
