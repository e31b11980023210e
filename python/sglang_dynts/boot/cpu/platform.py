"""The host CPU as a platform of SGLang's."""

import logging
import os
from collections.abc import Callable

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.interface import PlatformEnum, SRTPlatform
from torch.profiler import ProfilerActivity

from sglang_dynts.names import DRAFTS

logger = logging.getLogger(__name__)
THREADS = "OMP_NUM_THREADS"
CONVOLVED = "SGLANG_MAMBA_CONV_DTYPE"
"""Of what a convolution keeps of its last tokens; bfloat16 in SGLang, however exact the model is."""


class HostCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """The host CPU through plain torch operators."""

    # Not PlatformEnum.CPU: that one stands for SGLang's CPU engine and its compiled kernels.
    _enum = PlatformEnum.OOT

    def get_device(self, device_id: int = 0) -> str:  # pyright: ignore  upstream: torch.device
        """Return the device's name: SGLang's argument resolution splits it as text."""
        return self.device_type

    def get_default_attention_backend(self) -> str:
        """Return the torch kernels."""
        return "torch_native"

    def get_torch_profiler_activity_str(self) -> str:
        """Return the profiler's name of the CPU."""
        return "CPU"

    def get_torch_profiler_activity(self) -> ProfilerActivity:
        """Return the profiler's activity of the CPU."""
        return ProfilerActivity.CPU

    def is_pin_memory_available(self, device=None) -> bool:
        """Return False: there is no device to pin host memory for."""
        return False

    def init_backend(self) -> None:
        """Let torch do what SGLang has Triton kernels for, and ``torch_native`` know every attention."""
        from sglang_dynts.boot.cpu import attention_ranks, kernels

        kernels.put_in_place()
        attention_ranks.put_in_place()

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """Whether drafts of this kind run here; on plain torch operators, to be tried and tested."""
        return algorithm in DRAFTS

    def get_speculative_cache_locs_fn(self) -> Callable[..., torch.Tensor]:
        """Return the function that reads the slots of the tokens to verify."""
        from sglang_dynts.boot.cpu.speculation import slots_to_write  # only where drafts are used

        return slots_to_write

    def support_mamba_cache_extra_buffer(self) -> bool:
        """Whether recurrent states are kept for the prefix cache here."""
        return True

    def apply_server_args_defaults(self, server_args) -> None:
        """Default to torch attention, a communicator that needs no GPU, and half of the cores.

        Raises:
            ValueError: adapters or strict thinking are asked for.
        """
        refuse_what_needs_a_gpu(server_args)
        if server_args.attention_backend is None:
            server_args.attention_backend = "torch_native"
        if server_args.moe_runner_backend == "auto":
            # All names are torch here; gpt-oss's own choice would lay its weights out anew.
            server_args.moe_runner_backend = "triton"
        server_args.disable_custom_all_reduce = True
        choose_threads(server_args.tp_size)
        os.environ.setdefault(CONVOLVED, "float32")


def refuse_what_needs_a_gpu(server_args) -> None:
    """Refuse flags whose kernels SGLang 0.5.23 has for GPUs alone, before a request could reach them.

    Raises:
        ValueError: naming flag and remedy.
    """
    if server_args.enable_lora or server_args.lora_paths:
        raise ValueError(
            "--enable-lora/--lora-paths: SGLang 0.5.23 loads adapters through CUDA alone; drop the "
            "flag on this CPU machine, or serve adapters on a GPU"
        )
    if server_args.enable_strict_thinking:
        raise ValueError(
            "--enable-strict-thinking: SGLang 0.5.23 masks the vocabulary with a GPU kernel alone; drop "
            "the flag on this CPU machine, or serve on a GPU"
        )


def choose_threads(num_ranks: int) -> None:
    """Give the ranks half of the cores that this process may use, unless the operator chose a number.

    The other half is for the tokenizer, the detokenizer and the HTTP server. Torch's own default is a
    thread for every core, which wait for each other where something else runs: on two shared cores a
    small model then made 4 tokens a second in place of 48 to 95.
    """
    if THREADS in os.environ:
        return
    threads = max(1, len(os.sched_getaffinity(0)) // (2 * num_ranks))
    os.environ[THREADS] = str(threads)
    logger.info("CPU: %s=%d, half of the usable cores; set it yourself to choose", THREADS, threads)


def keep_overlap(_server_args) -> None:
    """REPLACE speculative_hook._disable_overlap_schedule_for_cpu: it overlaps here."""
