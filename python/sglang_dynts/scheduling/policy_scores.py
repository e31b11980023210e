"""Scores of requests that follow another policy than the predictor, rewritten before a compaction.

Also who of them needs every forward's attention for that.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from sgl_dynts.policies import (
    NEED_ALL_QUERIES,
    PREDICTOR,
    Candidates,
    LayerView,
    Policy,
    rewrite_scores,
)
from sgl_dynts.window import Cut
from sglang_dynts.entry.options import policy_of_request
from sglang_dynts.forward.device_state import runtime_of
from sglang_dynts.scheduling.prefix_cache import DynTSRadixCache


def count_attention(forward_batch, cls, batch, model_runner, **_kwargs) -> None:
    """AFTER ForwardBatch.init_new: name the requests whose attention this forward's layers count."""
    runtime = runtime_of(model_runner)
    if runtime is None or runtime.received is None or forward_batch.forward_mode.is_idle():
        return
    rows = {
        index: (req.kv.req_pool_idx, len(req.origin_input_ids))
        for index, req in enumerate(batch.reqs)
        if policy_of_request(req.sampling_params) in NEED_ALL_QUERIES
    }
    runtime.received.begin(forward_batch, rows)


def let_policies_score(
    cache: DynTSRadixCache, reqs: list, cuts: Sequence[Cut], rows: torch.Tensor
) -> None:
    """Rewrite the scores of candidates whose request follows another policy than the predictor.

    A slot has one owner and a request one policy, so nobody else reads what is written here. The forward
    in flight writes the score of the newest token alone, which is no candidate.

    Args:
        cache: whose windows are not told of the compaction yet.
        reqs: the requests to compact.
        cuts: their compactions.
        rows: [num_requests, width] their slots.
    """
    for index, req in enumerate(reqs):
        name = cache.report_of(req).policy
        if name != PREDICTOR:
            _score_by(cache.policies[name], cache, req, cuts[index], rows[index])


def _score_by(policy: Policy, cache: DynTSRadixCache, req, cut: Cut, row: torch.Tensor) -> None:
    window = cache.window_of(req)
    assert window is not None, "only governed requests are compacted"
    pool = cache.capacity.runtime.scores.scores
    held = row[: cut.window_len].long()
    end = cut.first + cut.num_candidates
    slots = held[cut.first : end]
    positions = np.arange(cut.first + cut.num_survivors, end) + window.dropped
    outputs = req.output_ids[positions[0] - cut.first : positions[-1] + 1 - cut.first]
    seq_len = window.seq_len(cut.window_len)
    views = partial(_views, cache, req.kv.req_pool_idx, seq_len, cut.local_window, held)
    received = partial(_received, cache, slots)
    candidates = Candidates(
        pool[slots], positions, np.asarray(outputs), req.origin_input_ids, views, received
    )
    rewrite_scores(policy, candidates, pool, slots)


def _views(
    cache: DynTSRadixCache, row: int, seq_len: int, local_window: int, held: torch.Tensor
) -> Iterator[LayerView]:
    recorder = cache.capacity.runtime.recorder
    assert recorder is not None, "a policy that needs queries was accepted by a server without them"
    pool = cache.token_to_kv_pool_allocator.get_kvcache()
    return recorder.views(row, seq_len, local_window, held, pool)


def _received(cache: DynTSRadixCache, slots: torch.Tensor) -> torch.Tensor:
    received = cache.capacity.runtime.received
    assert received is not None, "a policy that needs all queries was accepted by a server without them"
    return received.read(slots)
