"""What a speculative draft shares with the model it drafts for: rows, slots, scores, positions."""

from functools import wraps

import torch

from sgl_dynts.score_pool import ScorePool
from sglang_dynts.forward.device_state import DeviceState, state_of


def add_positions_at_the_door(model, state: DeviceState) -> None:
    """Let a draft model compute at original positions, and its attention read rows by window length.

    Where a step of a draft decodes, SGLang's attention takes positions for places in the row: they say
    how far to read. So they stay what the scheduler counts, and what the request has dropped is added
    where the model is entered. Captured in the draft's CUDA graphs.

    Args:
        model: the draft's; its ``forward(input_ids, positions, forward_batch, ...)`` is wrapped.
        state: whose ``dropped`` holds the difference.
    """
    forward = model.forward

    @wraps(forward)
    def forward_at_original_positions(input_ids, positions, forward_batch, *args, **kwargs):
        if forward_batch.forward_mode.is_decode():
            rows = forward_batch.req_pool_indices
            dropped = state.dropped.index_select(0, rows)
            positions = positions + by_token(dropped, len(positions)).to(positions.dtype)
        return forward(input_ids, positions, forward_batch, *args, **kwargs)

    model.forward = forward_at_original_positions


def by_token(of_requests: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Repeat [n] numbers of requests for their tokens, of which each has as many: [num_tokens]."""
    return of_requests.repeat_interleave(num_tokens // max(1, len(of_requests)))


def move_scores_along(pool, scores: ScorePool) -> None:
    """Let scores follow K and V when SGLang moves the accepted tokens of a tree to the front.

    Args:
        pool: the target's KV pool; its ``move_kv_cache(tgt_loc, src_loc)`` is wrapped.
        scores: of the same slots.
    """
    move = pool.move_kv_cache

    @wraps(move)
    def move_kv_cache(tgt_loc, src_loc):
        move(tgt_loc, src_loc)
        scores.scores[tgt_loc] = scores.scores[src_loc]

    pool.move_kv_cache = move_kv_cache


def join_pools(_result, model_runner) -> None:
    """AFTER ModelRunner._init_post_memory_pool_components: before graphs are captured."""
    state = state_of(model_runner)
    if state is None:
        return
    if model_runner.is_draft_worker:
        add_positions_at_the_door(model_runner.model, state)
        state.draft_pool = model_runner.token_to_kv_pool
    elif not model_runner.spec_algorithm.is_none():
        move_scores_along(model_runner.token_to_kv_pool, state.scores)
