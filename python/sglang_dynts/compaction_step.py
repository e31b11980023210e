"""The compaction round: once per scheduler iteration, all due requests together."""

import logging
from collections.abc import Callable

import torch
from sglang.srt.runtime_context import get_serving
from sglang.srt.utils.hf_transformers_utils import get_tokenizer

from sgl_dynts.compaction import apply_compaction, plan_compaction, to_device
from sgl_dynts.config import DynTSConfig
from sgl_dynts.thinking import ThinkingTracker, ThinkMarkers
from sgl_dynts.window import Cut, RequestWindow
from sglang_dynts.markers import resolve_markers
from sglang_dynts.radix_cache import DynTSRadixCache
from sglang_dynts.request_options import config_of_request, server_config
from sglang_dynts.runtime import is_enabled, runtime_of

logger = logging.getLogger(__name__)


def start(scheduler) -> None:
    """BEFORE Scheduler.init_output_streamer: tokenizer, pools and cache exist; govern from here on.

    Raises:
        ValueError: the think markers cannot be recognised.
        RuntimeError: another cache than ours was built.
    """
    if not is_enabled():
        return
    cache = scheduler.tree_cache
    if not isinstance(cache, DynTSRadixCache):
        raise RuntimeError(f"DynTS needs its own radix cache, SGLang built {type(cache).__name__}")
    tokenizer = scheduler.tokenizer or get_tokenizer(get_serving().tokenizer_path)
    markers = resolve_markers(tokenizer)
    config = server_config()
    cache.govern(_window_maker(config, markers))
    logger.info(describe(config, markers))


def describe(config: DynTSConfig, markers: ThinkMarkers) -> str:
    """Say in one line what the resolved windows mean."""
    return (
        f"DynTS is on: budget {config.budget}, local window {config.local_window}, keep ratio "
        f"{config.keep_ratio}. A request holds at most {config.budget} tokens of question and "
        f"thinking, {config.retained_len(0)} after a compaction, and compacts every {config.period} "
        f"tokens; a question longer than {config.keep_len - config.selection_floor} raises its own "
        f"budget. Thinking ends at token {list(markers.closing)}, opens at {list(markers.opening)}."
    )


def compact_due_requests(scheduler, running_batch) -> None:
    """BEFORE Scheduler._should_defer_prefill: free tokens before admission and the decode check.

    At this point the last batch is merged and every forward's reads of the rows are fenced off; the
    newest column may still be in computation, which is why it always belongs to the local window.
    """
    cache = scheduler.tree_cache
    if not isinstance(cache, DynTSRadixCache) or not running_batch.reqs:
        return
    due = _due_requests(cache, running_batch)
    if due:
        _compact(scheduler, running_batch, due)


def _due_requests(cache: DynTSRadixCache, batch) -> list[tuple[int, Cut]]:
    """Find (index in the batch, cut) of every request that must be compacted now."""
    due = []
    for index, (req, window_len) in enumerate(
        zip(batch.reqs, batch.seq_lens_cpu.tolist(), strict=False)  # beam members have no request
    ):
        window = cache.window_of(req)
        if window is None or window_len < window.due_len or not _is_settled(req):
            continue
        cut = window.cut(window_len, req.output_ids)
        if cut is not None and cut.num_dropped:
            due.append((index, cut))
    return due


def _is_settled(req) -> bool:
    """Whether the request decodes, its prefill's result is processed, and it owns one row."""
    return not req.finished() and req.kv.holds_kv and req.decode_batch_idx >= 1 and req.beam_group is None


def _compact(scheduler, batch, due: list[tuple[int, Cut]]) -> None:
    cache = scheduler.tree_cache
    runtime = runtime_of(scheduler.tp_worker.model_runner)
    assert runtime is not None, "a server with DynTS has its device state"
    rows = [batch.reqs[index].kv.req_pool_idx for index, _ in due]
    plan = plan_compaction(rows, [cut for _, cut in due])
    table = scheduler.req_to_token_pool.req_to_token
    freed = apply_compaction(plan, table, runtime.scores, runtime.dropped)
    runtime.rows_with_drops.update(rows)
    _shorten(batch, due)
    for index, cut in due:
        _record(cache, batch.reqs[index], cut)
    scheduler.token_to_kv_pool_allocator.free(freed)
    batch.batch_is_full = False


def _record(cache: DynTSRadixCache, req, cut: Cut) -> None:
    assert req.kv.cache_protected_len <= cut.first, f"{req.kv.cache_protected_len=} {cut.first=}"
    assert req.kv.kv_allocated_len == cut.window_len, f"{req.kv.kv_allocated_len=} {cut=}"
    req.kv.kv_allocated_len -= cut.num_dropped
    req.kv.kv_committed_len -= cut.num_dropped
    report = cache.report_of(req)
    assert report.window is not None, "only governed requests are due"
    report.window.record(cut)
    report.compacted(cut.window_len, cut.num_dropped)
    cache.totals.add(cut.num_dropped)


def _shorten(batch, due: list[tuple[int, Cut]]) -> None:
    """Shorten the batch's lengths in new tensors: a forward in flight still reads the old ones."""
    delta = torch.zeros_like(batch.seq_lens_cpu)
    for index, cut in due:
        delta[index] = cut.num_dropped
    batch.seq_lens_cpu = batch.seq_lens_cpu - delta
    batch.seq_lens = batch.seq_lens - to_device(delta.to(batch.seq_lens.dtype), batch.seq_lens.device)
    batch.seq_lens_sum = None


def _window_maker(
    default: DynTSConfig, markers: ThinkMarkers
) -> Callable[[object], RequestWindow | None]:
    def new_window(req) -> RequestWindow | None:
        config = config_of_request(req.sampling_params, default)
        if config is None:
            return None
        prompt = req.origin_input_ids
        tracker = ThinkingTracker(markers, markers.starts_thinking(prompt))
        return RequestWindow(config, len(prompt), tracker)

    return new_window
