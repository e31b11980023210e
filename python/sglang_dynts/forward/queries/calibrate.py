"""The served model reads a text at its start, and the statistics of its queries are kept."""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.sampling.sampling_params import SamplingParams

from sgl_dynts.expected_attention import QueryMoments, QueryStatistics, Rotation
from sglang_dynts.forward.kv_pools import is_compacted
from sglang_dynts.names import BACKEND_NAME

LONGEST_CHUNK = 1024
"""Tokens that are read at a time, if the server's own limits allow it."""
UNGOVERNED: dict[str, Any] = {BACKEND_NAME: {"enabled": False}}


class QueryCounter:
    """Adds up the queries of one attention layer, as they were before their rotation."""

    def __init__(self, layer: RadixAttention, rotation: Rotation) -> None:
        self.layer = layer
        self.rotation = rotation
        self.moments = QueryMoments(layer.tp_q_head_num, layer.qk_head_dim, rotation)

    def add(self, _layer: RadixAttention, args: tuple) -> None:
        """Before the layer's attention: take the rotated queries of a prefill."""
        query, forward_batch = args[0], args[3]
        heads = query.view(-1, self.layer.tp_q_head_num, self.layer.qk_head_dim).float()
        self.moments.add(self.rotation.undo(heads, forward_batch.positions))


def calibrate(scheduler, token_ids: Sequence[int]) -> list[QueryStatistics]:
    """Let the served model read a text, and return what its queries are like.

    Each chunk is read by itself, as a request that nobody governs; its KV is given back.

    Args:
        scheduler: SGLang's, whose governor exists and whose loop has not begun.
        token_ids: at least two, as long as one likes.

    Returns:
        The statistics of every layer that compactions reach on this rank, float32 on its device.
    """
    model_runner = scheduler.tp_worker.model_runner
    layers = [QueryCounter(layer, rotation) for layer, rotation in judged_layers(model_runner)]
    with ExitStack() as hooks:
        hooks.enter_context(without_prefill_graphs(model_runner))
        for one in layers:
            hooks.callback(one.layer.register_forward_pre_hook(one.add).remove)
        for part in chunks(token_ids, longest_chunk(scheduler)):
            read(scheduler, part)
            scheduler.forward_ct += 1  # a forward, which the watchdog of a slow machine waits for
    return [one.moments.statistics() for one in layers]


@contextmanager
def without_prefill_graphs(model_runner) -> Iterator[None]:
    """Let prefills run eagerly: a captured one calls no hook."""
    captured = model_runner.prefill_cuda_graph_runner
    model_runner.prefill_cuda_graph_runner = None
    try:
        yield
    finally:
        model_runner.prefill_cuda_graph_runner = captured


def longest_chunk(scheduler) -> int:
    """Most tokens that one prefill may hold."""
    own = scheduler.chunked_prefill_size or scheduler.max_total_num_tokens
    free = scheduler.token_to_kv_pool_allocator.available_size()
    return min(LONGEST_CHUNK, own, free, scheduler.model_config.context_len - 2)


def chunks(token_ids: Sequence[int], longest: int) -> Iterator[Sequence[int]]:
    """Split a text into parts of at most this many tokens, and of at least two."""
    for first in range(0, len(token_ids), longest):
        part = token_ids[first : first + longest]
        if len(part) > 1:
            yield part


@torch.inference_mode()
def read(scheduler, token_ids: Sequence[int]) -> None:
    """Run a prefill over some tokens, outside the scheduler's loop, and forget it."""
    params = SamplingParams(temperature=0, max_new_tokens=1, custom_params=dict(UNGOVERNED))
    params.normalize(None)
    req = Req(f"{HEALTH_CHECK_RID_PREFIX}_{BACKEND_NAME}", "", array("q", token_ids), params)
    req.logprob_start_len = -1  # of no token
    req.init_next_round_input(scheduler.tree_cache)
    req.lock = scheduler.tree_cache.lock(req.last_node)
    req.extend_end = len(req.full_untruncated_fill_ids)
    batch = ScheduleBatch.init_new(
        [req],
        scheduler.req_to_token_pool,
        scheduler.token_to_kv_pool_allocator,
        scheduler.tree_cache,
        scheduler.model_config,
        False,
        scheduler.spec_algorithm,
    )
    batch.prepare_for_extend()
    if batch.input_ids is None and batch.prefill_input_ids_cpu is not None:
        batch.input_ids = batch.prefill_input_ids_cpu.to(scheduler.device, non_blocking=True)
        batch.prefill_input_ids_cpu = None
    batch = scheduler.dp_attn_adapter.maybe_prepare_mlp_sync_batch(batch)
    model_runner = scheduler.tp_worker.model_runner
    try:
        forward_batch = ForwardBatch.init_new(batch, model_runner, return_hidden_states_before_norm=False)
        model_runner.forward(forward_batch)
    finally:
        release_kv_cache(req, scheduler.tree_cache, checkpoint=False)


def judged_layers(model_runner) -> Iterator[tuple[RadixAttention, Rotation]]:
    """Yield the attention layers that compactions reach, each with its rotation.

    Args:
        model_runner: SGLang's, its pools allocated.

    Raises:
        ValueError: how a layer rotates is not known.
    """
    pool = model_runner.token_to_kv_pool
    for layer, rotation in rotated_layers(model_runner.model):
        if is_compacted(layer, pool):
            yield layer, rotation


def rotated_layers(model: torch.nn.Module) -> Iterator[tuple[RadixAttention, Rotation]]:
    """Yield every attention layer with its rotation; a model's attention holds both side by side.

    Raises:
        ValueError: how a layer rotates is not known.
    """
    for module in model.modules():
        for child in module.children():
            if isinstance(child, RadixAttention):
                yield child, rotation_of(module, child)


def rotation_of(attention: torch.nn.Module, layer: RadixAttention) -> Rotation:
    """Return a layer's rotation from its own table, which knows of scaled frequencies.

    Raises:
        ValueError: it has none that is known here.
    """
    rotary = getattr(attention, "rotary_emb", None)
    if rotary is None:
        flat = torch.ones(1, 0, device=next(attention.parameters()).device)
        return Rotation(flat, flat)
    table = getattr(rotary, "cos_sin_cache", None)
    if table is None or table.shape[-1] > layer.qk_head_dim:
        raise ValueError(
            f"--dynts-policy: {type(rotary).__name__} rotates in a way that a calibration does not know; "
            "name a policy that needs none, such as window"
        )
    cos, sin = table.float().chunk(2, dim=-1)
    return Rotation(cos, sin, interleaved=not rotary.is_neox_style)
