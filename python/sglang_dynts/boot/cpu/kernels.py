"""Kernels of SGLang's that are written in Triton alone, in torch, for the host CPU."""

import sglang.srt.layers.logits_processor as logits_processor
import torch
from sglang.srt.layers.attention.attention_registry import register_attention_backend

from sglang_dynts.boot.cpu.attention import HostCpuAttention

TORCH = ("torch_native", "triton")
"""Names of attention that mean torch here: SGLang starts some models with the second alone."""


def put_in_place() -> None:
    """Let this process use them; done once, before a model is made."""
    for name in TORCH:
        register_attention_backend(name)(HostCpuAttention)
    logits_processor.fused_softcap = cap_logits  # pyright: ignore[reportAttributeAccessIssue]


def cap_logits(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Cap logits in place, softly: ``cap * tanh(logits / cap)``."""
    return logits.div_(cap).tanh_().mul_(cap)
