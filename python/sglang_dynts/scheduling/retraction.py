"""What a request that loses its row leaves on the host, and how it is brought back."""

from array import array
from typing import Any

import torch

from sgl_dynts.policies import Sets
from sgl_dynts.window import RequestWindow
from sglang_dynts.entry.governed_request import GovernedRequest
from sglang_dynts.entry.host_copies import copy_bytes, read_copy, write_copy
from sglang_dynts.scheduling.governor import Compaction, Governor, seen_len


def keeps_copies(governor: Governor) -> bool:
    """Whether this server copies windows to the host at all."""
    return governor.copies.max_bytes > 0


def may_be_copied(governor: Governor, req) -> bool:
    """Whether copies are kept, and the request can go on without a forward over its prompt.

    Log-probabilities of the prompt come with the first forward's result and are kept over a retraction;
    SGLang leaves them None until then, also for a request that asked for those of its output alone.
    """
    owes_logprobs = (
        not governor.gets_prompts and req.return_logprob and req.logprob.input_token_logprobs_val is None
    )
    return keeps_copies(governor) and not owes_logprobs


def copy_to_host(governor: Governor, req) -> bool:
    """Copy the window of a request that is about to lose its row; whether a copy was kept.

    The forward in flight, if there is one, saw the window before this iteration's compaction, and its
    token is lost. So that the same token comes again, that compaction is undone in the copy; what it
    freed was not written since.
    """
    governed = governor.governed(req)
    window = governed.window
    device = governor.device
    row = device.table[req.kv.req_pool_idx]
    undone = governor.compacted_now.pop(req, None)
    if undone is not None and _can_be_undone(governor, req, governed):
        row = undone.slots
        _forget_choice(governor, req, undone)
        governed.undo(undone.cut.num_dropped, undone.early)
        governor.tally.undone()
    if window is None or not may_be_copied(governor, req) or _can_be_recomputed(governor, req, window):
        return False
    num_tokens = _held_len(req, window) - 1
    extras = device.head_scores, device.draft_pool
    if not _make_room(governor, copy_bytes(governor.pools, num_tokens, *extras)):
        return False
    device.settle_moves()
    copy = read_copy(governor.pools, row[:num_tokens], device.scores.scores, *extras)
    governor.copies.give(governed, copy)
    return True


def _forget_choice(governor: Governor, req, undone: Compaction) -> None:
    """Move nothing, and let the score pool say again what the predictor said of new tokens."""
    device, cut = governor.device, undone.cut
    if device.moves_of(req) is not None and device.head_scores is not None:
        judged = undone.slots[cut.first : cut.first + cut.num_candidates].long()
        device.scores.scores[judged] = device.head_scores.noted(judged)
    device.forget_moves(req)


def bring_back(governor: Governor, req, slots: torch.Tensor) -> None:
    """Write a request's copy to newly allocated slots.

    Args:
        governor: of the scheduler.
        req: a request with a copy.
        slots: [num_tokens of the copy] int64.
    """
    governed = governor.governed(req)
    copy = governor.copies.take(governed)
    device = governor.device
    device.settle_moves()  # the new slots may be ones that pending moves still read
    extras = device.head_scores, device.draft_pool
    write_copy(governor.pools, copy, slots, device.scores.scores, *extras)
    device.resumed[req] = governed.own_window.dropped
    governed.num_resumptions += 1
    governor.tally.resumed()


def build_fill_ids_anew(req: Any) -> None:
    """Let SGLang put the tokens to compute together again: those of a copy are not all of a request's."""
    req.full_untruncated_fill_ids = array("q")


def _make_room(governor: Governor, num_bytes: int) -> bool:
    """Whether a copy of this size fits, after giving up copies that can be computed again."""
    copies = governor.copies
    for holder in copies.holders():
        if copies.has_room_for(num_bytes):
            break
        if governor.fits_again(seen_len(holder.req())):
            give_up_copy(governor, holder)
    return copies.has_room_for(num_bytes)


def give_up_copy(governor: Governor, holder: GovernedRequest) -> None:
    """Let a retracted request start anew instead."""
    governor.copies.take(holder)
    holder.restart()
    build_fill_ids_anew(holder.req())


def _can_be_recomputed(governor: Governor, req, window: RequestWindow) -> bool:
    """Whether computing the request again gives the window it had."""
    return window.dropped == 0 and governor.fits_again(_held_len(req, window))


def _can_be_undone(governor: Governor, req, governed: GovernedRequest) -> bool:
    """Whether the forward in flight did not see this iteration's compaction, and nothing moved for it."""
    one_set = governor.policies[governed.policy].sets is Sets.ONE
    moved = not one_set and governor.device.moves_of(req) is None
    waited = governor.capacity.step.is_speculative  # for what was in flight, before it was compacted
    return _is_in_flight(req, governed.own_window) and not moved and not waited


def _is_in_flight(req, window: RequestWindow) -> bool:
    """Whether a forward of the request's newest token was launched: that token has its slot already."""
    return _held_len(req, window) == req.kv.kv_allocated_len


def _held_len(req, window: RequestWindow) -> int:
    """Tokens a request needs KV of to go on, its newest included."""
    return seen_len(req) - window.dropped
