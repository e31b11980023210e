"""Compaction of many requests at once: plan on the host, apply on the device without waiting for it.

Every size is a host fact, so the device work is a fixed number of launches whatever the number of
requests, and nothing is read back. On CUDA that is one launch, and one more where answer tokens are to be
protected; elsewhere torch does the same in more steps, and is what the kernels are tested against.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sgl_dynts.score_pool import ScorePool
from sgl_dynts.selection import select_kept
from sgl_dynts.transfer import to_device
from sgl_dynts.window import Cut


@dataclass(frozen=True)
class CompactionPlan:
    """All compactions of one scheduler iteration.

    ``rows`` are the requests' rows in the request-to-token table, one per cut.
    """

    rows: tuple[int, ...]
    cuts: tuple[Cut, ...]

    @property
    def num_dropped(self) -> int:
        """Slots the whole plan frees."""
        return sum(cut.num_dropped for cut in self.cuts)

    @property
    def answer_cells(self) -> list[tuple[int, int]]:
        """Table cells (row, column) of the answer tokens to protect first."""
        return [
            (row, column)
            for row, cut in zip(self.rows, self.cuts, strict=True)
            for span in cut.answer_spans
            for column in range(*span)
        ]

    def answer_spans(self) -> torch.Tensor:
        """[3, num_spans] int64: row, first column and column after the last of each answer span."""
        spans = [
            (row, *span)
            for row, cut in zip(self.rows, self.cuts, strict=True)
            for span in cut.answer_spans
        ]
        return torch.tensor(spans, dtype=torch.int64).view(-1, 3).T.contiguous()

    def sizes(self) -> torch.Tensor:
        """[6, num_requests] int64: row, first, candidates, kept, local window, freed before it."""
        columns: list[tuple[int, ...]] = []
        freed = 0
        for row, cut in zip(self.rows, self.cuts, strict=True):
            numbers = (cut.first, cut.num_candidates, cut.num_kept, cut.local_window)
            columns.append((row, *numbers, freed))
            freed += cut.num_dropped
        return torch.tensor(columns, dtype=torch.int64).T.contiguous()


def plan_compaction(rows: Sequence[int], cuts: Sequence[Cut]) -> CompactionPlan:
    """Collect the cuts that free something into one plan."""
    due = [(row, cut) for row, cut in zip(rows, cuts, strict=True) if cut.num_dropped]
    return CompactionPlan(tuple(row for row, _ in due), tuple(cut for _, cut in due))


def apply_compaction(
    plan: CompactionPlan, table: torch.Tensor, scores: ScorePool, dropped: torch.Tensor
) -> torch.Tensor:
    """Rewrite the rows of a plan in place and return the slots to free.

    Args:
        plan: at least one cut.
        table: [num_rows, max_len] int32, slots of each request; row 0 is padding. A compacted row is
            question, survivors in their old order, local window, then zeros.
        scores: the score of every slot.
        dropped: [num_rows] int64, tokens each request has dropped so far; counted up.

    Returns:
        freed: [plan.num_dropped] int64, slots that no row names any more.
    """
    apply = apply_with_kernels if table.is_cuda else apply_with_torch
    return apply(plan, table, scores, dropped)


def apply_with_kernels(
    plan: CompactionPlan, table: torch.Tensor, scores: ScorePool, dropped: torch.Tensor
) -> torch.Tensor:
    """Do :func:`apply_compaction` in one launch, or two; allocates only what it returns and the sizes."""
    from sgl_dynts import kernels  # only where there is a GPU: nothing else needs triton

    spans = plan.answer_spans()
    if spans.numel():
        kernels.protect_spans(table, scores.scores, to_device(spans, table.device))
    sizes = to_device(plan.sizes(), table.device)
    freed = torch.empty(plan.num_dropped, dtype=torch.int64, device=table.device)
    kernels.compact_rows(table, scores.scores, dropped, sizes, freed)
    return freed


def warm_up(device: torch.device | str) -> None:
    """Run a small compaction, so that whatever is compiled is compiled before the first request."""
    table = torch.arange(4, dtype=torch.int32, device=device).repeat(2, 1)
    plan = plan_compaction([1], [Cut(0, 2, 1, 1, answer_spans=((0, 1),))])
    apply_compaction(plan, table, ScorePool(4, device), torch.zeros(2, dtype=torch.int64, device=device))


def apply_with_torch(
    plan: CompactionPlan, table: torch.Tensor, scores: ScorePool, dropped: torch.Tensor
) -> torch.Tensor:
    """Do :func:`apply_compaction` on any device; the kernels' twin."""
    sizes = to_device(plan.sizes(), table.device)
    rows, first, candidates, kept, local, freed_before = sizes
    _protect_answers(plan, table, scores)
    width = max(cut.num_candidates + cut.local_window for cut in plan.cuts)
    columns = torch.arange(width, device=table.device)
    inside = columns < (candidates + local)[:, None]
    cell_rows = rows[:, None] * inside
    cell_columns = (first[:, None] + columns) * inside
    slots = table[cell_rows, cell_columns].long()  # outside a window: the padding cell (0, 0)

    survives = _survivors(plan, scores, slots, candidates, kept) | (
        (columns >= candidates[:, None]) & inside
    )
    falls = inside & ~survives
    target = torch.where(survives, survives.cumsum(1) - 1, width)
    packed = slots.new_zeros(len(plan.cuts), width + 1)
    packed.scatter_(1, target, slots)
    table[cell_rows, cell_columns] = packed[:, :width].to(table.dtype)

    freed = slots.new_empty(plan.num_dropped + 1)
    place = torch.where(falls, freed_before[:, None] + falls.cumsum(1) - 1, plan.num_dropped)
    freed.scatter_(0, place.flatten(), slots.flatten())
    dropped.index_add_(0, rows, candidates - kept)
    return freed[: plan.num_dropped]


def _survivors(
    plan: CompactionPlan,
    scores: ScorePool,
    slots: torch.Tensor,
    candidates: torch.Tensor,
    kept: torch.Tensor,
) -> torch.Tensor:
    """[num_requests, width] bool: candidates that survive."""
    widest = max(cut.num_candidates for cut in plan.cuts)
    chosen = select_kept(scores.scores[slots[:, :widest]], candidates, kept)
    survives = torch.zeros_like(slots, dtype=torch.bool)
    survives[:, :widest] = chosen
    return survives


def _protect_answers(plan: CompactionPlan, table: torch.Tensor, scores: ScorePool) -> None:
    cells = plan.answer_cells
    if cells:
        rows, columns = to_device(torch.tensor(cells, dtype=torch.int64).T, table.device)
        scores.protect(table[rows, columns].long())
