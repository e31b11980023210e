"""Each head packs its own tokens into the slots that the row keeps."""

import pytest
import torch

from sgl_dynts import head_sets
from sgl_dynts.compaction import apply_with_torch, plan_compaction
from sgl_dynts.head_sets import move_with_torch, plan_moves, rank_slots
from sgl_dynts.score_pool import ScorePool
from sgl_dynts.window import Cut


def packed(row: list[int], kept: list[int], fixed: list[int]) -> list[int]:
    """What a head's slots hold afterwards, by place in the new row, in plain Python."""
    stays = sorted([*fixed, *[place for place in range(len(row)) if place not in fixed]][: len(kept)])
    free = iter(token for token in kept if token not in fixed)
    return [row[place] if place in fixed else row[next(free)] for place in stays]


@pytest.mark.parametrize("num_fixed", [0, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_every_head_holds_what_it_chose_in_the_slots_that_stay(num_fixed, dtype):
    draw = torch.Generator().manual_seed(num_fixed)
    layers, heads, num, num_kept, local = 3, 2, 14, 6, 2
    slots = torch.randperm(40, generator=draw)[: num + local]
    fixed = torch.zeros(num, dtype=torch.bool)
    fixed[torch.randperm(num, generator=draw)[:num_fixed]] = True
    scores = torch.rand(layers, heads, num, generator=draw)
    kv = [[(torch.rand(40, heads, 4, generator=draw) * 8).to(dtype) for _ in "kv"] for _ in range(layers)]
    before = [[tensor.clone() for tensor in pair] for pair in kv]

    pool = ScorePool(40, "cpu")
    pool.scores[slots[:num]] = rank_slots(fixed)
    table = torch.stack([torch.zeros_like(slots), slots]).int()
    freed = apply_with_torch(
        plan_compaction([1], [Cut(0, num, num_kept, local)]),
        table,
        pool,
        torch.zeros(2, dtype=torch.int64),
    )
    move_with_torch(plan_moves(scores, fixed, slots[:num], num_kept), kv)

    row = table[1, : num_kept + local].long()
    assert sorted([*row.tolist(), *freed.tolist()]) == sorted(slots.tolist())
    assert row[num_kept:].tolist() == slots[num:].tolist()
    for layer in range(layers):
        for head in range(heads):
            judged = scores[layer, head].masked_fill(fixed, torch.inf)
            kept = sorted(judged.topk(num_kept).indices.tolist())
            wanted = packed(slots.tolist()[:num], kept, fixed.nonzero().flatten().tolist())
            for tensor, old in zip(kv[layer], before[layer], strict=True):
                found = tensor[row[:num_kept], head].float()
                assert torch.equal(found, old[torch.tensor(wanted), head].float())
                elsewhere = torch.ones(40, dtype=torch.bool)
                elsewhere[row[:num_kept]] = False
                assert torch.equal(tensor.float()[elsewhere], old.float()[elsewhere])


def test_equal_scores_go_to_the_older_token_and_no_source_stands_before_its_target():
    fixed = torch.tensor([False, False, True, False, False, False])
    moves = plan_moves(torch.zeros(1, 1, 6), fixed, torch.arange(6), 3)
    assert moves.targets.tolist() == [0, 1, 2]
    assert moves.sources.tolist() == [[[0, 1, 2]]]
    scores = torch.tensor([[[0.0, 1, 0, 2, 3, 2]]])
    moves = plan_moves(scores, fixed, torch.arange(6), 3)
    assert moves.sources.tolist() == [[[3, 4, 2]]]
    assert bool((moves.sources >= moves.targets).all())


def test_many_heads_choose_a_few_at_a_time(monkeypatch):
    scores, fixed = torch.rand(5, 3, 20), torch.arange(20) % 7 == 0
    together = plan_moves(scores, fixed, torch.arange(20), 9)
    monkeypatch.setattr(head_sets, "SCORES_AT_ONCE", 50)
    apart = plan_moves(scores, fixed, torch.arange(20), 9)
    assert torch.equal(apart.sources, together.sources)
