"""Random work for the kernels, on any device; each check compares a kernel with its torch twin.

The unit tests run these in Triton's interpreter, the GPU tests on the device.
"""

import random
from dataclasses import dataclass

import torch

from sgl_dynts.compaction import CompactionPlan, apply_with_kernels, apply_with_torch, plan_compaction
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.score_pool import ScorePool
from sgl_dynts.scoring import write_with_kernels, write_with_torch
from sgl_dynts.window import Cut

NAN, INF = float("nan"), float("inf")
SCORES = {
    "distinct": None,
    "ties": (0.0, -0.0, 1.0, 2.0),
    "signs": (-3e38, -1.0, -1e-44, -0.0, 0.0, 1e-44, 1.0, 3e38),
    "not_finite": (NAN, -NAN, INF, -INF, 0.0, 3.4e38),
    "equal": (0.5,),
}
"""Values that scores are drawn from, None for random ones."""


@dataclass
class Batch:
    plan: CompactionPlan
    table: torch.Tensor
    scores: torch.Tensor
    dropped: torch.Tensor

    def apply(self, how, device: str) -> list[torch.Tensor]:
        """Everything that a compaction leaves: freed slots, table, scores, counters."""
        pool = ScorePool(len(self.scores), device)
        pool.scores.copy_(self.scores)
        table, dropped = self.table.to(device, copy=True), self.dropped.to(device, copy=True)
        freed = how(self.plan, table, pool, dropped)
        return [freed, table, pool.scores, dropped]


def make_batch(cuts: list[Cut], values: tuple[float, ...] | None, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    width = max(cut.window_len for cut in cuts) + 5
    rows = torch.randperm(2 * len(cuts), generator=draw)[: len(cuts)] + 1
    num_slots = sum(cut.window_len for cut in cuts) + 1
    slots = torch.randperm(num_slots - 1, generator=draw) + 1
    table = torch.zeros(2 * len(cuts) + 1, width, dtype=torch.int32)
    for row, cut in zip(rows, cuts, strict=True):
        table[row, : cut.window_len], slots = slots[: cut.window_len], slots[cut.window_len :]
    scores = torch.randn(num_slots, generator=draw)
    if values is not None:
        scores = torch.tensor(values)[torch.randint(len(values), (num_slots,), generator=draw)]
    plan = plan_compaction(rows.tolist(), cuts)
    return Batch(plan, table, scores, torch.randint(9, (len(table),), generator=draw))


def random_cuts(num_requests: int, longest: int, seed: int) -> list[Cut]:
    """Ragged cuts, each of which drops something; some protect answer tokens."""
    draw = random.Random(seed)
    cuts = []
    for _ in range(num_requests):
        first, local = draw.randrange(9), draw.randint(1, max(1, longest // 3))
        candidates = draw.randint(1, longest)
        start = draw.randint(first, first + candidates + local - 1)
        span = (start, draw.randint(start + 1, first + candidates + local))
        spans = (span,) if draw.random() < 0.3 else ()
        cuts.append(Cut(first, candidates, draw.randrange(candidates), local, spans))
    return cuts


def check_compaction(cuts: list[Cut], kind: str, seed: int, device: str = "cpu") -> None:
    batch = make_batch(cuts, SCORES[kind], seed)
    wanted = batch.apply(apply_with_torch, "cpu")  # CUDA's sort has its own mind about negative NaN
    found = [left.cpu() for left in batch.apply(apply_with_kernels, device)]
    for name, one, other in zip(("freed", "table", "scores", "dropped"), found, wanted, strict=True):
        torch.testing.assert_close(
            one, other, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: n + m
        )


def check_scoring(
    num_tokens: int, sizes: tuple[int, int, int], dtype: torch.dtype, seed: int, device: str = "cpu"
) -> None:
    torch.manual_seed(seed)
    predictor = ImportancePredictor(sizes[0], sizes[1:]).to(device, dtype)
    hidden = torch.randn(num_tokens, sizes[0], device=device) * 3
    slots = torch.randperm(2 * num_tokens, device=device)[:num_tokens] + 1
    pools = [ScorePool(2 * num_tokens + 1, device) for _ in range(2)]
    with torch.no_grad():
        write_with_torch(predictor, hidden, slots, pools[0])
        write_with_kernels(predictor, hidden, slots, pools[1])
    # The first Softplus may round a half-precision value the other way; in float32 it is one formula.
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(pools[1].scores, pools[0].scores, rtol=tolerance, atol=1e-6)
