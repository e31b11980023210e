"""Compacted KV in host memory: what a retracted request needs to go on where it was."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch


@dataclass(frozen=True)
class HostCopy:
    """One request's window, without the newest token, which is computed again.

    ``kv`` is what the allocator's ``get_cpu_copy`` gave for ``num_tokens`` slots in window order;
    ``scores`` is [num_tokens] float32 on the host.
    """

    kv: Any
    scores: torch.Tensor
    num_bytes: int

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


def read_copy(allocator, table_row: torch.Tensor, scores: torch.Tensor) -> HostCopy:
    """Copy a window's KV and scores to the host; waits for the device.

    Args:
        allocator: SGLang's slot allocator, which knows the KV pool.
        table_row: [num_tokens] slots in window order.
        scores: the score of every slot.
    """
    slots = table_row.long()
    kv = allocator.get_cpu_copy(slots)
    return HostCopy(kv, scores[slots].cpu(), num_bytes=len(slots) * bytes_per_token(allocator))


def write_copy(allocator, copy: HostCopy, slots: torch.Tensor, scores: torch.Tensor) -> None:
    """Write a copy into newly allocated slots: [copy.num_tokens] int64."""
    allocator.load_cpu_copy(copy.kv, slots)
    scores[slots] = copy.scores.to(scores.device)


def bytes_per_token(allocator) -> int:
    """Bytes of one token's K, V and score on this rank."""
    pool = allocator.get_kvcache()
    return sum(pool.get_kv_size_bytes()) // (pool.size + pool.page_size) + 4
