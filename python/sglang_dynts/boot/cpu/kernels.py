"""Kernels of SGLang's that are written in Triton alone, in torch, for the host CPU."""

import sglang.srt.layers.logits_processor as logits_processor
import sglang.srt.layers.moe.fused_moe_native as experts
import torch
from sglang.srt.layers.attention.attention_registry import register_attention_backend

from sglang_dynts.boot.cpu.draft_attention import DraftingAttention

TORCH = ("torch_native", "triton")
"""Names of attention that mean torch here: SGLang starts some models with the second alone."""


def put_in_place() -> None:
    """Let this process use them; done once, before a model is made."""
    for name in TORCH:
        register_attention_backend(name)(DraftingAttention)
    logits_processor.fused_softcap = cap_logits  # pyright: ignore[reportAttributeAccessIssue]
    experts.swiglu_gpt_oss_sigmoid_alpha = clamped_swiglu


def clamped_swiglu(gate_up: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """The activation of gpt-oss's experts, of gate and up by turns; SGLang's needs a compiler.

    Args:
        gate_up: [..., 2 * width].
        alpha: of the sigmoid.
        limit: most that a gate may be, and up on either side.

    Returns:
        [..., width].
    """
    gate, up = gate_up[..., ::2].clamp(max=limit), gate_up[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def cap_logits(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Cap logits in place, softly: ``cap * tanh(logits / cap)``."""
    return logits.div_(cap).tanh_().mul_(cap)
