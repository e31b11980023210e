"""Scores of requests that follow another policy than the predictor, rewritten before a compaction."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from sgl_dynts.policies import PREDICTOR, Candidates, LayerView, rewrite_scores
from sgl_dynts.window import Cut
from sglang_dynts.scheduling.governor import Governor


def let_policies_score(governor: Governor, reqs: list, cuts: Sequence[Cut], rows: torch.Tensor) -> None:
    """Rewrite the scores of candidates whose request follows another policy than the predictor.

    A slot has one owner and a request one policy, so nobody else reads what is written here. The forward
    in flight writes the score of the newest token alone, which is no candidate.

    Args:
        governor: whose windows are not told of the compaction yet.
        reqs: the requests to compact.
        cuts: their compactions.
        rows: [num_requests, width] their slots.
    """
    for index, req in enumerate(reqs):
        if governor.governed(req).policy != PREDICTOR:
            _score(governor, req, cuts[index], rows[index])


def _score(governor: Governor, req, cut: Cut, row: torch.Tensor) -> None:
    governed = governor.governed(req)
    window = governed.own_window
    pool = governor.device.scores.scores
    held = row[: cut.window_len].long()
    end = cut.first + cut.num_candidates
    slots = held[cut.first : end]
    positions = np.arange(cut.first + cut.num_survivors, end) + window.dropped
    outputs = req.output_ids[positions[0] - cut.first : positions[-1] + 1 - cut.first]
    seq_len = window.seq_len(cut.window_len)
    views = partial(_views, governor, req.kv.req_pool_idx, seq_len, cut.local_window, held)
    received = partial(_received, governor, slots)
    candidates = Candidates(
        pool[slots], positions, np.asarray(outputs), req.origin_input_ids, views, received
    )
    rewrite_scores(governor.policies[governed.policy], candidates, pool, slots)


def _views(
    governor: Governor, row: int, seq_len: int, local_window: int, held: torch.Tensor
) -> Iterator[LayerView]:
    recorder = governor.device.recorder
    assert recorder is not None, "a policy that needs queries was accepted by a server without them"
    return recorder.views(row, seq_len, local_window, held, governor.allocator.get_kvcache())


def _received(governor: Governor, slots: torch.Tensor) -> torch.Tensor:
    received = governor.device.received
    assert received is not None, "a policy that needs all queries was accepted by a server without them"
    return received.read(slots)
