"""Where a decode server's scheduler differs from one that computes its own prompts."""

import torch

from sgl_dynts.transfer import to_device
from sglang_dynts.scheduling.governor import governor_of
from sglang_dynts.scheduling.retraction import bring_back
from sglang_dynts.scheduling.round import hold_round


def compact_on_decode_side(scheduler, running_batch) -> None:
    """BEFORE Scheduler.get_next_disagg_decode_batch_to_run: free tokens before the decode check."""
    queue, joining = scheduler.disagg_decode_prealloc_queue, len(scheduler.waiting_queue)
    hold_round(scheduler, running_batch, waits=queue.somebody_waits(), num_joining=joining)


def restore(original, req, tree_cache, req_to_token_pool, *args, **kwargs) -> None:
    """AROUND common.restore_kv_cache: write a window back, to the slots of its new row."""
    governor = governor_of(tree_cache)
    copy = None if governor is None else governor.governed(req).copy
    if governor is None or copy is None:
        original(req, tree_cache, req_to_token_pool, *args, **kwargs)
        return
    row = req_to_token_pool.req_to_token[req.kv.req_pool_idx]
    assert req.kv.kv_committed_len == copy.num_tokens, f"{req.kv.kv_committed_len=} {copy.num_tokens=}"
    bring_back(governor, req, row[: copy.num_tokens].long())
    governor.device.resume_rows([req])


def shorten_prebuilt(_result, batch) -> None:
    """AFTER ScheduleBatch.prepare_for_prebuilt: lengths count tokens seen, rows those held."""
    governor = governor_of(batch.tree_cache)
    if governor is None:
        return
    dropped = torch.tensor([governor.governed(req).dropped for req in batch.reqs], dtype=torch.int64)
    if not dropped.any():
        return
    batch.seq_lens_cpu = batch.seq_lens_cpu - dropped
    batch.seq_lens = batch.seq_lens - to_device(dropped, batch.seq_lens.device)
    batch.seq_lens_sum = int(batch.seq_lens_cpu.sum())
