"""Requests longer than the pool: how long one may get, and what a retraction leaves of it."""

from http import HTTPStatus

from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.scheduler import _make_abort_req

from sgl_dynts.capacity import room_beyond_retained
from sgl_dynts.window import RequestWindow
from sglang_dynts.scheduling.governor import Governor, governor_of, seen_len
from sglang_dynts.scheduling.retraction import copy_to_host, keeps_copies

UNLIMITED = 1 << 30


def copy_before_release(original, *, req, tree_cache, offload_kv: bool = True, **kwargs) -> bool:
    """AROUND schedule_batch.release_req: keep a host copy of a compacted window that loses its row.

    A pause that asks for recomputation (``offload_kv`` False) gets it from whatever fits the pool.
    """
    governor = governor_of(tree_cache)
    if governor is not None and req.to_finish is None:
        if governor.gets_prompts:
            return _release_copied(original, governor, req, tree_cache, offload_kv, kwargs)
        fits = governor.fits_again(seen_len(req))
        copied = (offload_kv or not fits) and copy_to_host(governor, req)
        if not copied and not fits:
            governor.lost.append(req)
    return original(req=req, tree_cache=tree_cache, offload_kv=offload_kv, **kwargs)


def _release_copied(original, governor: Governor, req, tree_cache, offload_kv: bool, kwargs) -> bool:
    """Keep a copy of any window: SGLang's own has no scores. Without one SGLang ends the request.

    Returns:
        Whether the request can go on later.
    """
    if governor.window_of(req) is None:
        return original(req=req, tree_cache=tree_cache, offload_kv=offload_kv, **kwargs)
    copied = copy_to_host(governor, req)
    original(req=req, tree_cache=tree_cache, offload_kv=False, **kwargs)
    return copied


def abort_lost(scheduler, lost: list) -> None:
    """End retracted requests that can be neither resumed nor computed again, with their reason.

    Args:
        scheduler: SGLang's.
        lost: these requests; emptied.
    """
    waiting = [req for req in scheduler.waiting_queue if req in lost]
    scheduler.waiting_queue = [req for req in scheduler.waiting_queue if req not in lost]
    lost.clear()
    reason = FINISH_ABORT(
        "Retracted while longer than the KV pool, and its copy does not fit --dynts-host-memory-gb. "
        "Retry later, or start the server with more.",
        status_code=HTTPStatus.SERVICE_UNAVAILABLE,
    )
    for req in waiting:
        scheduler.send_abort_output(_make_abort_req(req, finished_reason=reason.to_json()), req)


def allow_beyond_pool(original, scheduler, req) -> None:
    """AROUND Scheduler.init_req_max_new_tokens: a window that fits the pool may outlive its size.

    SGLang clips what a request may generate to the pool, so that a retracted one can be computed again.
    A governed request is resumed from a copy of its window instead.
    """
    asked = req.sampling_params.max_new_tokens
    asked_least = req.sampling_params.min_new_tokens
    original(scheduler, req)
    governor = governor_of(scheduler.tree_cache)
    if governor is None or req.to_finish is not None:
        return
    window = governor.window_of(req)
    if window is None or not _is_bounded(governor, window):
        return
    allowed = min(asked if asked is not None else UNLIMITED, _longest_output(scheduler, req))
    req.sampling_params.max_new_tokens = max(req.sampling_params.max_new_tokens, allowed)
    req.sampling_params.min_new_tokens = min(asked_least, req.sampling_params.max_new_tokens)


def _is_bounded(governor: Governor, window: RequestWindow) -> bool:
    """Whether the pool holds the request's window whatever its length, and copies are kept."""
    period = window.config.period
    most = window.retained_len + room_beyond_retained(period, 0, governor.capacity.elastic)
    most = int(most) + governor.capacity.step.spare_slots
    return most < governor.capacity.pool_len and keeps_copies(governor)


def _longest_output(scheduler, req) -> int:
    """Most tokens that the model's context and SGLang's own limit leave to a request."""
    room = scheduler.model_config.context_len - len(req.origin_input_ids) - 2
    limit = scheduler.max_new_tokens_limit
    return min(room, limit) if limit is not None and limit > 0 else room
