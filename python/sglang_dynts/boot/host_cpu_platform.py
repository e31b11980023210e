"""The host CPU as a platform of SGLang's."""

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.interface import PlatformEnum, SRTPlatform


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

    def is_pin_memory_available(self, device=None) -> bool:
        """Return False: there is no device to pin host memory for."""
        return False

    def apply_server_args_defaults(self, server_args) -> None:
        """Default to torch attention and a communicator that needs no GPU.

        Raises:
            ValueError: adapters are asked for.
        """
        if server_args.enable_lora or server_args.lora_paths:
            raise ValueError(
                "--enable-lora/--lora-paths: SGLang 0.5.23 loads adapters through CUDA alone; drop the "
                "flag on this CPU machine, or serve adapters on a GPU"
            )
        if server_args.attention_backend is None:
            server_args.attention_backend = "torch_native"
        server_args.disable_custom_all_reduce = True
