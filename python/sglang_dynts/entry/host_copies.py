"""Compacted KV in host memory: what a retracted request needs to go on where it was."""

from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet

import torch

from sgl_dynts.head_scores import HeadScores


@dataclass(frozen=True)
class HostCopy:
    """One request's window, without the newest token, which is computed again.

    ``kv`` is what the KV pools' ``read`` gave for ``num_tokens`` slots in window order;
    ``scores`` is [num_tokens] float32 on the host; ``head_scores`` [layers, kv_heads, num_tokens],
    float32 too, where the server keeps them.
    """

    kv: Any
    scores: torch.Tensor
    num_bytes: int
    head_scores: torch.Tensor | None = None
    draft_kv: Any = None
    """What the pool of a draft gave for the same slots, None without one."""

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV is held."""
        return len(self.scores)


class HostCopies:
    """Who has a copy, within a bound; a holder that is gone takes its copy along.

    A holder's copy is its attribute ``copy``.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._holders: WeakSet[Any] = WeakSet()

    @property
    def num_bytes(self) -> int:
        """Bytes that all copies take."""
        return sum(holder.copy.num_bytes for holder in self._holders)

    def has_room_for(self, num_bytes: int) -> bool:
        """Whether a copy of this size may be added."""
        return self.num_bytes + num_bytes <= self.max_bytes

    def holders(self) -> list[Any]:
        """Return who has a copy, the largest copy first."""
        return sorted(self._holders, key=lambda holder: -holder.copy.num_bytes)

    def give(self, holder: Any, copy: HostCopy) -> None:
        """Let somebody hold a copy until it is taken."""
        assert self.has_room_for(copy.num_bytes), f"{self.num_bytes=} {copy.num_bytes=} {self.max_bytes=}"
        holder.copy = copy
        self._holders.add(holder)

    def take(self, holder: Any) -> HostCopy:
        """Remove and return a holder's copy."""
        copy, holder.copy = holder.copy, None
        self._holders.remove(holder)
        return copy


class KvPools(Protocol):
    """What holds K and V of slots."""

    def read(self, slots: torch.Tensor) -> Any:
        """Copy what is in these slots, [n] int64, to the host."""
        ...

    def write(self, copy: Any, slots: torch.Tensor) -> None:
        """Write what :meth:`read` gave into as many slots."""
        ...

    def num_bytes(self, num_tokens: int) -> int:
        """Bytes of a copy of so many tokens."""
        ...


def read_copy(
    pools: KvPools,
    slots: torch.Tensor,
    scores: torch.Tensor,
    head_scores: HeadScores | None = None,
    draft_pool: Any = None,
) -> HostCopy:
    """Copy slots to the host; waits for the device.

    Args:
        pools: of the server.
        slots: [num_tokens] int, in window order.
        scores: [num_slots] float32, of every slot.
        head_scores: of every slot by head, where the server keeps them.
        draft_pool: where a draft keeps its own K and V of the same slots, if it does.
    """
    slots = slots.long()
    kv = pools.read(slots)
    by_head = None if head_scores is None else head_scores.read(slots).cpu()
    draft_kv = None if draft_pool is None else draft_pool.get_cpu_copy(slots)
    num_bytes = copy_bytes(pools, len(slots), head_scores, draft_pool)
    return HostCopy(kv, scores[slots].cpu(), num_bytes, by_head, draft_kv)


def write_copy(
    pools: KvPools,
    copy: HostCopy,
    slots: torch.Tensor,
    scores: torch.Tensor,
    head_scores: HeadScores | None = None,
    draft_pool: Any = None,
) -> None:
    """Write a copy into newly allocated slots: [copy.num_tokens] int64."""
    pools.write(copy.kv, slots)
    if copy.draft_kv is not None:
        draft_pool.load_cpu_copy(copy.draft_kv, slots)
    scores[slots] = copy.scores.to(scores.device)
    if head_scores is not None:
        assert copy.head_scores is not None, "one server keeps scores by head of all requests or of none"
        head_scores.write(slots, copy.head_scores)


def copy_bytes(
    pools: KvPools, num_tokens: int, head_scores: HeadScores | None = None, draft_pool: Any = None
) -> int:
    """Bytes of a copy of so many tokens on this rank: K, V and scores, a draft's K and V included."""
    per_token = 4 if head_scores is None else 4 + head_scores.bytes_per_token
    if draft_pool is not None:
        per_token += bytes_per_token(draft_pool)
    return pools.num_bytes(num_tokens) + num_tokens * per_token


def bytes_per_token(pool) -> int:
    """Bytes of one token's K and V in one of SGLang's pools, on this rank."""
    sizes = pool.get_kv_size_bytes()  # of K and of V; of both in one where the pool keeps latents
    total = sum(sizes) if isinstance(sizes, tuple) else int(sizes)
    return total // (pool.size + pool.page_size)
