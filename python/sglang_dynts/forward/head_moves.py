"""Moves of K and V, for compactions with a set of tokens per head: when they run, and on what stream."""

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool

from sgl_dynts.head_sets import HeadBuffers, HeadMoves, move_heads
from sglang_dynts.forward.kv_pools import full_side, keeps_by_head


class PendingMoves:
    """Keeps moves from a compaction until the next forward, which carries them out first.

    A compaction runs beside the forward in flight, and that one still reads what is to be moved. So a
    move waits for the forward's own stream. Until then a compaction can be undone by forgetting it.
    Slots that a compaction freed may be handed out at once: forwards write them later, on that stream.
    """

    def __init__(self, buffers: HeadBuffers) -> None:
        self._buffers = buffers
        self._pending: dict[Any, HeadMoves] = {}
        self._carried_out: torch.cuda.Event | None = None
        self.forward_stream: torch.cuda.Stream | None = None
        """Where forwards run, if not where the scheduler works."""

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and KV heads."""
        return self._buffers.shape

    def warm_up(self) -> None:
        """Move nothing, so that whatever is compiled is compiled before the first request."""
        some = torch.zeros(1, dtype=torch.int64, device=self._buffers.layers[0][0].device)
        move_heads(HeadMoves(some, some, some.expand(*self.shape, 1).contiguous()), self._buffers)

    def add(self, req: Any, moves: HeadMoves) -> None:
        """Let the next forward carry out a request's moves first."""
        assert req not in self._pending, "what is pending is settled before the next compaction"
        self._pending[req] = moves

    def of(self, req: Any) -> HeadMoves | None:
        """Return a request's moves that are to be carried out."""
        return self._pending.get(req)

    def forget(self, req: Any) -> None:
        """Do not carry out a request's moves, if it has any: its compaction is undone."""
        self._pending.pop(req, None)

    def carry_out(self) -> None:
        """Queue what is pending on the current stream; nobody waits."""
        if not self._pending:
            return
        for moves in self._pending.values():
            move_heads(moves, self._buffers)
            _keep_until_done(moves)
        self._pending.clear()
        if torch.cuda.is_initialized():
            self._carried_out = torch.cuda.Event()
            self._carried_out.record()

    def settle(self) -> None:
        """Have K and V in their places for whoever reads or writes them on the scheduler's stream."""
        if self._pending and self.forward_stream is not None:
            torch.cuda.current_stream().wait_stream(self.forward_stream)
        self.carry_out()
        if self._carried_out is not None:
            torch.cuda.current_stream().wait_event(self._carried_out)

    def finish(self) -> None:
        """Have K and V in their places for whoever writes them without a stream; the host waits."""
        self.settle()
        if self._carried_out is not None:
            self._carried_out.synchronize()
            self._carried_out = None


def movable_tensors(pool, *others: Sequence[torch.Tensor]) -> list[list[torch.Tensor]] | None:
    """Return what SGLang's pool keeps of each token and head, layer by layer; of two pools the full one.

    Args:
        pool: the KV pool.
        others: each has one more tensor [num_slots, kv_heads] for each layer, or none at all.

    Returns:
        For each layer tensors [num_slots, kv_heads, ...]; None where K and V are stored otherwise.
    """
    pool = full_side(pool)
    if type(pool) is MLATokenToKVPool:
        layers = [[latent] for latent in pool.kv_buffer]
    elif type(pool) is MHATokenToKVPool and not keeps_by_head(pool) and pool.k_scale_buffer is None:
        assert pool.k_buffer is not None
        assert pool.v_buffer is not None
        layers = [list(pair) for pair in zip(pool.k_buffer, pool.v_buffer, strict=True)]
    else:
        return None
    for tensors in filter(None, others):
        for layer, other in zip(layers, tensors, strict=True):
            layer.append(other)
    return layers


def _keep_until_done(moves: HeadMoves) -> None:
    """Let no tensor's memory be handed out on the scheduler's stream while another stream reads it."""
    if moves.slots.is_cuda:
        for tensor in (moves.slots, moves.targets, moves.sources):
            tensor.record_stream(torch.cuda.current_stream())
