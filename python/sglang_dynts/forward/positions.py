"""Logical positions: the scheduler counts the KV a request holds, RoPE counts what it has seen."""

import torch

from sglang_dynts.forward.device_state import state_of
from sglang_dynts.forward.drafts import by_token


def restore_positions(forward_batch, cls, batch, model_runner, **_kwargs):
    """AFTER ForwardBatch.init_new: add what each request has dropped to its tokens' positions."""
    state = state_of(model_runner)
    if state is None or forward_batch.positions is None or forward_batch.forward_mode.is_idle():
        return
    mode = forward_batch.forward_mode
    if state.resumed and not mode.is_decode():
        state.resume_rows(batch.reqs)
    if not state.rows_with_drops or (model_runner.is_draft_worker and mode.is_decode()):
        return  # a draft's steps have them added where its model is entered
    shift = state.dropped_of(forward_batch.req_pool_indices)
    if mode.is_target_verify() or mode.is_draft_extend_v2():
        shift = by_token(shift, len(forward_batch.positions))
    elif not mode.is_decode():
        shift = torch.repeat_interleave(
            shift, forward_batch.extend_seq_lens, output_size=forward_batch.extend_num_tokens
        )
    forward_batch.positions = forward_batch.positions + shift.to(forward_batch.positions.dtype)
    if forward_batch.mrope_positions is not None:  # [3, num_tokens]; of text all three are the position
        forward_batch.mrope_positions = forward_batch.mrope_positions + shift
