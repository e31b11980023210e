"""Logical positions: the scheduler counts the KV a request holds, RoPE counts what it has seen."""

import torch

from sglang_dynts.forward.device_state import runtime_of


def restore_positions(forward_batch, cls, batch, model_runner, **_kwargs):
    """AFTER ForwardBatch.init_new: add what each request has dropped to its tokens' positions."""
    runtime = runtime_of(model_runner)
    if runtime is None or forward_batch.positions is None or forward_batch.forward_mode.is_idle():
        return
    if runtime.resumed and not forward_batch.forward_mode.is_decode():
        runtime.resume_rows(batch.reqs)
    if not runtime.rows_with_drops:
        return
    shift = runtime.dropped_of(forward_batch.req_pool_indices)
    if not forward_batch.forward_mode.is_decode():
        shift = torch.repeat_interleave(
            shift, forward_batch.extend_seq_lens, output_size=forward_batch.extend_num_tokens
        )
    forward_batch.positions = forward_batch.positions + shift.to(forward_batch.positions.dtype)
    return
