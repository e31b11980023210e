"""``dynts`` in SGLang's registry of attention backends."""

from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

from sglang_dynts.boot.kernel_choice import meant_by_dynts


def create_dynts_backend(runner):
    """Build the kernels that ``dynts`` means on this runner's device.

    A compacted request is a shorter sequence to the kernels, so they are SGLang's own, unchanged:
    FlashInfer on CUDA for most models, torch on a CPU. Argument resolution writes that name where SGLang
    decides something by it; this entry serves whoever looks ``dynts`` up directly.

    Args:
        runner: the ``ModelRunner`` to build for.
    """
    return ATTENTION_BACKENDS[meant_by_dynts(runner.device, runner.model_config)](runner)
