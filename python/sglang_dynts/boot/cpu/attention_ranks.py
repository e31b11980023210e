"""Data-parallel attention on the host CPU: in plain torch what SGLang 0.5.23 does on GPUs alone.

SGLang has all of it for its own CPU engine, and asks a constant of each module whether that one runs.
"""

import inspect

import sglang.srt.distributed.parallel_state as parallel_state
import sglang.srt.layers.dp_attention as dp_attention
import sglang.srt.model_executor.forward_batch_info as forward_batch_info

COLLECTIVES = (
    *("reg_all_gather_into_tensor", "reg_reduce_scatter_tensor"),
    *("reg_all_to_all_single", "inplace_all_reduce"),
)
"""Functions that SGLang registers as operators of a GPU; below each is one that any device runs."""


def put_in_place() -> None:
    """Let this process use it; done once, before a model is made."""
    # Of host memory that cannot be pinned, and of rows that fill a batch up to another rank's size.
    forward_batch_info._is_cpu = True
    dp_attention.memcpy_func = dp_attention.memcpy_cpu
    for name in COLLECTIVES:
        setattr(parallel_state, name, inspect.unwrap(getattr(parallel_state, name)))
