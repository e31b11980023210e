"""What requests that follow another policy than the predictor keep, told to a compaction before it."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from sgl_dynts.head_sets import plan_moves, rank_slots
from sgl_dynts.policies import (
    PREDICTOR,
    Candidates,
    LayerView,
    Policy,
    Sets,
    rewrite_scores,
    scores_by_head,
)
from sgl_dynts.window import Cut
from sglang_dynts.entry.token_log import read_by_head
from sglang_dynts.forward.held_layers import held_layers
from sglang_dynts.scheduling.governor import Governor


def let_policies_score(governor: Governor, reqs: list, cuts: Sequence[Cut], rows: torch.Tensor) -> None:
    """Rewrite the scores of candidates whose request follows another policy than the predictor.

    A slot has one owner and a request one policy, so nobody else reads what is written here. The forward
    in flight writes the score of the newest token alone, which is no candidate. A policy with more than
    one set chooses tokens here; what it writes makes the compaction keep the slots that these move to.

    Args:
        governor: whose windows are not told of the compaction yet.
        reqs: the requests to compact.
        cuts: their compactions.
        rows: [num_requests, width] their slots.
    """
    followed = [governor.policies[governor.governed(req).policy] for req in reqs]
    if any(policy.sets is not Sets.ONE for policy in followed):
        governor.device.settle_moves()
    for req, policy, cut, row in zip(reqs, followed, cuts, rows, strict=True):
        held = row[: cut.window_len].long()
        if policy.sets is not Sets.ONE:
            _choose_by_head(governor, req, policy, cut, held)
        elif policy.name != PREDICTOR:
            candidates = _candidates(governor, req, cut, held, policy)
            slots = held[cut.first : cut.first + cut.num_candidates]
            rewrite_scores(policy, candidates, governor.device.scores.scores, slots)


def _candidates(governor: Governor, req, cut: Cut, held: torch.Tensor, policy: Policy) -> Candidates:
    governed = governor.governed(req)
    window = governed.own_window
    end = cut.first + cut.num_candidates
    slots = held[cut.first : end]
    positions = np.arange(cut.first + cut.num_survivors, end) + window.dropped
    after_question = governor.after_question(req)
    token_ids = after_question[positions[0] - cut.first : positions[-1] + 1 - cut.first]
    question = req.origin_input_ids[: governed.question_len]
    seq_len = window.seq_len(cut.window_len)
    return Candidates(
        governor.device.scores.scores[slots],
        positions,
        np.asarray(token_ids),
        question,
        partial(_views, governor, req.kv.req_pool_idx, seq_len, cut.local_window, held),
        partial(_received, governor, slots, policy.sets),
        partial(held_layers, governor.device.attention, held[:-1], governor.pools.kv),
        partial(_predicted, governor, slots),
        newest=seq_len - 2,
    )


def _choose_by_head(governor: Governor, req, policy: Policy, cut: Cut, held: torch.Tensor) -> None:
    """Choose a set per head, let the next forward move it, and keep the slots that it moves to."""
    moves, governed = governor.device.own_moves, governor.governed(req)
    governor.read_scores(req)
    for span in cut.answer_spans:
        governor.device.scores.protect(held[slice(*span)])
    candidates = _candidates(governor, req, cut, held, policy)
    slots = held[cut.first : cut.first + cut.num_candidates]
    if policy.needs_predictor:
        new = slice(cut.num_survivors, None)
        governor.device.own_head_scores.note(slots[new], candidates.scores[new])
    scores = scores_by_head(policy, candidates, moves.shape[1])
    fixed = candidates.scores == torch.inf
    if governed.tokens is not None:
        read_by_head(governed.tokens, scores, fixed, cut.window_len, cut.first, governed.dropped)
    moves.add(req, plan_moves(scores, fixed, slots, cut.num_kept))
    governor.device.scores.scores[slots] = rank_slots(fixed)


def _views(
    governor: Governor, row: int, seq_len: int, local_window: int, held: torch.Tensor
) -> Iterator[LayerView]:
    recorder = governor.device.recorder
    assert recorder is not None, "a policy that needs queries was accepted by a server without them"
    return recorder.views(row, seq_len, local_window, held, governor.pools.kv)


def _predicted(governor: Governor, slots: torch.Tensor) -> torch.Tensor:
    return governor.device.own_head_scores.read(slots)


def _received(governor: Governor, slots: torch.Tensor, sets: Sets) -> torch.Tensor:
    received = governor.device.received
    assert received is not None, "a policy that needs all queries was accepted by a server without them"
    return received.read_by_head(slots) if sets is Sets.PER_HEAD else received.read(slots)
