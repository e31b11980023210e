"""A compaction, carried out: the one place that writes SGLang's rows, lengths and free slots for it."""

from dataclasses import dataclass, replace

import torch

from sgl_dynts.compaction import CompactionPlan, apply_compaction, plan_compaction
from sgl_dynts.transfer import to_device
from sgl_dynts.window import Cut
from sglang_dynts.entry.token_log import note_compaction, note_moves, read_window
from sglang_dynts.scheduling.governor import Compaction, Governor
from sglang_dynts.scheduling.policy_scores import let_policies_score
from sglang_dynts.scheduling.speculation import shorten_published


@dataclass(frozen=True)
class Chosen:
    """A running request that is compacted in this round: its place in the batch, and how."""

    index: int
    cut: Cut
    early: bool


def compact(governor: Governor, scheduler, batch, chosen: list[Chosen]) -> None:
    """Compact requests of the running batch, all together.

    Args:
        governor: of the scheduler.
        scheduler: SGLang's.
        batch: SGLang's running batch; its lengths are rebound.
        chosen: at least one.
    """
    reqs = [batch.reqs[one.index] for one in chosen]
    cuts = [one.cut for one in chosen]
    governor.pools.prepare(scheduler.tree_cache, reqs)
    with_spares = [_with_spares(req, cut) for req, cut in zip(reqs, cuts, strict=True)]
    plan = plan_compaction([req.kv.req_pool_idx for req in reqs], with_spares)
    device, work = governor.device, governor.device_work
    before = work.run(slots_of, device.table, plan)
    let_policies_score(governor, reqs, cuts, before)
    _read_scores(governor, reqs, cuts, before)
    freed = work.run(apply_compaction, plan, device.table, device.scores, device.dropped)
    device.note_drops(plan.rows)
    if governor.capacity.step.is_speculative and scheduler.enable_overlap:
        shorten_published(scheduler, list(plan.rows), [cut.num_dropped for cut in cuts])
    else:
        _shorten_batch(batch, chosen)
    for req, one, slots in zip(reqs, chosen, before, strict=True):
        _shorten_request(req, one.cut)
        done = Compaction(one.cut, one.early, slots[: one.cut.window_len])
        _log_drops(governor, req, done)
        governor.record(req, done)
    governor.pools.give_back(reqs, cuts, freed)


def slots_of(table: torch.Tensor, plan: CompactionPlan) -> torch.Tensor:
    """[num_requests, width] the rows of a plan as they are before it."""
    width = max(cut.window_len for cut in plan.cuts)
    return table[:, :width].index_select(0, to_device(torch.tensor(plan.rows), table.device))


def _with_spares(req, cut: Cut) -> Cut:
    """Let slots that are held ready for drafts move along with the local window."""
    spares = req.kv.kv_allocated_len - req.kv.kv_committed_len
    return replace(cut, local_window=cut.local_window + spares) if spares else cut


def _shorten_batch(batch, chosen: list[Chosen]) -> None:
    """Shorten the batch's lengths in new tensors: a forward in flight still reads the old ones."""
    delta = torch.zeros_like(batch.seq_lens_cpu)
    dropped = delta.numpy()
    for one in chosen:
        dropped[one.index] = one.cut.num_dropped
    batch.seq_lens_cpu = batch.seq_lens_cpu - delta
    batch.seq_lens = batch.seq_lens - to_device(delta.to(batch.seq_lens.dtype), batch.seq_lens.device)
    batch.seq_lens_sum = None


def _shorten_request(req, cut: Cut) -> None:
    assert req.kv.cache_protected_len <= cut.first, f"{req.kv.cache_protected_len=} {cut.first=}"
    assert req.kv.kv_committed_len == cut.window_len, f"{req.kv.kv_committed_len=} {cut=}"
    req.kv.kv_allocated_len -= cut.num_dropped
    req.kv.kv_committed_len -= cut.num_dropped


def _read_scores(governor: Governor, reqs: list, cuts: list[Cut], before: torch.Tensor) -> None:
    """Let requests that asked for it know the scores they are judged by, before answers are marked.

    With a set per head the pool does not hold them, and they are known already.
    """
    scores = governor.device.scores.scores
    for index, req in enumerate(reqs):
        governed = governor.governed(req)
        if governed.tokens is not None and governor.device.moves_of(req) is None:
            slots = before[index, : cuts[index].window_len]
            read_window(governed.tokens, slots, scores, governed.dropped)


def _log_drops(governor: Governor, req, done: Compaction) -> None:
    """Note which tokens fell, for a request that asked for it; its window does not know of it yet."""
    governed = governor.governed(req)
    if governed.tokens is None:
        return
    window_len, moves = done.cut.window_len, governor.device.moves_of(req)
    seq_len = governed.own_window.seq_len(window_len)
    if moves is not None:
        note_moves(governed.tokens, moves, window_len, done.cut.first, governed.dropped, seq_len)
    else:
        row = governor.device.table[req.kv.req_pool_idx, : req.kv.kv_committed_len]
        note_compaction(governed.tokens, done.slots, row, governed.dropped, seq_len)
