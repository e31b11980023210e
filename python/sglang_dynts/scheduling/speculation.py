"""Speculative decoding: compactions at the same lengths as without it, although a step adds many tokens.

A verification accepts no token beyond the length at which its request is due, and a round that may
compact first waits for the verification in flight. So every compaction sees exact lengths and every
token, and what follows it is computed without what it dropped.
"""

from typing import Any

import numpy as np
import torch

from sgl_dynts.transfer import to_device
from sglang_dynts.scheduling.governor import Governor, governor_of


def stop_where_due(original, verify_input, batch, *args, **kwargs):
    """AROUND eagle_utils.eagle_sample: accept no token beyond the length at which a request is compacted.

    Coins of a seeded request are drawn by how much it has seen, as they are without DynTS.
    """
    governor = governor_of(batch.tree_cache)
    if governor is None or batch.forward_mode.is_idle():
        return original(verify_input, batch, *args, **kwargs)
    window_lens = batch.seq_lens
    if batch.sampling_info.sampling_seed is not None:
        batch.seq_lens = window_lens + governor.device.dropped_of(batch.req_pool_indices)
    predict, accept_lens, accept_index = original(verify_input, batch, *args, **kwargs)
    batch.seq_lens = window_lens
    due = _due_within_reach(governor, batch)
    if due is None:
        return predict, accept_lens, accept_index
    room = to_device(due, window_lens.device) - window_lens
    return predict, *clip(accept_lens, accept_index, room)


def clip(accept_lens, accept_index, room) -> tuple[torch.Tensor, torch.Tensor]:
    """Shorten what was accepted to what there is room for, at least one token.

    Args:
        accept_lens: [n] int32, tokens accepted of each request.
        accept_index: [n, longest] int32, where these are among the verified tokens, then -1.
        room: [n] int64.

    Returns:
        Both, in new tensors.
    """
    most = accept_index.shape[1]  # one without a window has room for more than an int32 can tell
    lens = torch.minimum(accept_lens, room.clamp(1, most).to(accept_lens.dtype))
    columns = torch.arange(most, device=accept_index.device)
    return lens, torch.where(columns < lens[:, None], accept_index, -1)


def _due_within_reach(governor: Governor, batch) -> torch.Tensor | None:
    """[n] int64, window lengths at which requests are due; None if this verification reaches none.

    The host's lengths may lack what the verification before this one has accepted.
    """
    due = governor.table.due[batch.req_pool_indices_cpu.numpy()[: len(batch.reqs)]]
    nearest = (due - committed_lens(batch)).min()
    return None if nearest > 2 * governor.capacity.step.num_tokens else torch.from_numpy(due)


def committed_lens(batch) -> np.ndarray:
    """[n] int64, tokens of each request whose KV is computed, without those of a step in flight."""
    return np.array([req.kv.kv_committed_len for req in batch.reqs], dtype=np.int64)


def tokens_in_flight(scheduler, governor: Governor) -> int:
    """Most tokens that a step in flight adds to a running request beyond what the host knows."""
    if not governor.capacity.step.is_speculative or not scheduler.enable_overlap:
        return 0
    flies = any(batch.forward_mode.is_decode() for batch, _ in scheduler.result_queue)
    return governor.capacity.step.num_tokens if flies else 0


def settle(scheduler, governor: Governor, running_batch) -> None:
    """Process the result of the step in flight now, before SGLang would; waits for the device.

    It stays in SGLang's queue, whose length SGLang counts on, with no request left in it.
    """
    batch, result = scheduler.result_queue[-1]
    scheduler.process_batch_result(batch, result)
    governor.settled, batch.reqs = result, []
    _forget_accepted(scheduler.future_map, batch.req_pool_indices)
    num_running = running_batch.batch_size()
    running_batch.filter_batch()  # as SGLang does right before a round
    if running_batch.batch_size() < num_running:
        running_batch.batch_is_full = False


def _forget_accepted(future_map, rows: torch.Tensor) -> None:
    """Let SGLang's n-grams not add to the outputs of some rows what is in them already.

    With overlap it adds what the verification before accepted. Else it would look for what follows tokens
    that stand twice, and learn them so.
    """
    if future_map.spec_algo.is_ngram() and future_map.accept_lens_buf is not None:
        future_map.accept_lens_buf[rows] = 0


def skip_settled(original, scheduler, batch, result) -> Any:
    """AROUND Scheduler.process_batch_result: what a round has processed is not processed again."""
    governor = governor_of(scheduler.tree_cache)
    if governor is not None and governor.settled is result:
        governor.settled = None
        return None
    return original(scheduler, batch, result)


def shorten_published(scheduler, rows: list[int], num_dropped: list[int]) -> None:
    """Shorten the lengths that a verification left on the device for the step after it.

    Args:
        scheduler: SGLang's, with overlap.
        rows: of requests that were compacted, and of which nothing is in flight.
        num_dropped: tokens that each compaction dropped.
    """
    published = scheduler.future_map.new_seq_lens_buf
    places, drops = to_device(torch.tensor([rows, num_dropped]), published.device)
    published.index_add_(0, places, -drops.to(published.dtype))
