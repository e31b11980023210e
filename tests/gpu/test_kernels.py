"""The kernels on the device against their torch twins on the same device, and what they promise there."""

from dataclasses import replace

import pytest
import torch

from sgl_dynts.compaction import apply_compaction, apply_with_torch, warm_up
from sgl_dynts.expected_layers import PairedQueries, expected_with_kernel, expected_with_torch
from sgl_dynts.head_sets import HeadBuffers, move_heads, plan_moves
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.score_pool import ScorePool
from sgl_dynts.scoring import write_scores, write_with_torch
from sgl_dynts.window import Cut
from tests.head_cases import KV, Moved, check_moves
from tests.kernel_cases import SCORES, check_compaction, check_scoring, make_batch, random_cuts
from tests.unit.test_expected_layers import HORIZON, POSITION, Heads, layers_of, queries_of

LLAMA = Heads(kv_heads=8, group=4, head_dim=128, value_dim=128, turned=64, dtype=torch.bfloat16)
WIDE = Heads(head_dim=256, value_dim=256, turned=32, dtype=torch.bfloat16)
FLOAT8 = Heads(head_dim=128, value_dim=128, turned=64, dtype=torch.float8_e4m3fn)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(
    ("num_requests", "longest"), [(1, 40), (7, 60), (5, 20_000), (512, 24), (512, 5000)]
)
def test_ragged_batches_are_compacted_as_by_torch(num_requests, longest, kind):
    for seed in range(5):
        check_compaction(random_cuts(num_requests, longest, seed), kind, seed, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "sizes"), [(1, (64, 96, 32)), (256, (3584, 8192, 2048)), (8192, (512, 1000, 250))]
)
def test_tokens_are_scored_as_by_torch(num_tokens, sizes, dtype):
    check_scoring(num_tokens, sizes, dtype, 0, "cuda")


@pytest.mark.parametrize("num_held", [1, 700, 5000])
@pytest.mark.parametrize("heads", [Heads(), LLAMA, WIDE, FLOAT8], ids=str)
def test_all_layers_are_judged_as_by_torch(heads, num_held):
    draw = torch.Generator().manual_seed(0)
    queries, layers = queries_of(heads, draw), layers_of(heads, num_held, draw)
    wanted = expected_with_torch(layers, queries, POSITION, HORIZON)
    on_device = [
        replace(each, **_moved(each, "stored_keys", "stored_values", "slots")) for each in layers
    ]
    paired = PairedQueries.of(queries)
    rotations = tuple(replace(each, **_moved(each, "cos", "sin")) for each in paired.rotations)
    paired = replace(paired, rotations=rotations, **_moved(paired, "mean", "spread", "largest"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = expected_with_kernel(on_device, paired, POSITION, HORIZON)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), wanted, rtol=0.05, atol=1e-6)


def _moved(thing: object, *names: str) -> dict[str, torch.Tensor]:
    return {name: getattr(thing, name).cuda() for name in names}


def test_a_compaction_never_waits_for_the_device():
    batch = make_batch(random_cuts(64, 500, 0), None, 0)
    warm_up("cuda")
    table, dropped = batch.table.cuda(), batch.dropped.cuda()
    pool = ScorePool(len(batch.scores), "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        apply_compaction(batch.plan, table, pool, dropped)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compaction_allocates_what_it_frees_whatever_the_pool_holds():
    plan = make_batch([Cut(2, 3000, 1000, 1000)], None, 0).plan
    table = torch.zeros(4, 200_000, dtype=torch.int32, device="cuda")
    pool, dropped = ScorePool(20_000_000, "cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    warm_up("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    apply_compaction(plan, table, pool, dropped)
    assert torch.cuda.max_memory_allocated() - before <= 8 * plan.num_dropped + 4096


def test_the_choice_by_device_compacts_as_torch_does():
    batch = make_batch(random_cuts(9, 300, 3), SCORES["ties"], 3)
    for one, other in zip(
        batch.apply(apply_compaction, "cuda"), batch.apply(apply_with_torch, "cpu"), strict=True
    ):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scoring_is_captured_in_a_graph_and_replayed_with_new_tokens(dtype):
    predictor = ImportancePredictor(64, (96, 32)).to("cuda", dtype)
    hidden, slots = torch.zeros(4, 64, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    pool, wanted = ScorePool(9, "cuda"), ScorePool(9, "cuda")
    with torch.no_grad():
        write_scores(predictor, hidden, slots, pool)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            write_scores(predictor, hidden, slots, pool)
        hidden.copy_(torch.randn(4, 64))
        slots.copy_(torch.tensor([3, 8, 1, 5]))
        graph.replay()
        write_with_torch(predictor, hidden, slots, wanted)
    found = pool.scores[1:]
    torch.testing.assert_close(
        found, wanted.scores[1:], rtol=1e-4 if dtype == torch.float32 else 1e-2, atol=0
    )
    assert (found > 0).sum() == 4


def test_no_tokens_are_no_launch():
    pool = ScorePool(3, "cuda")
    empty = torch.zeros(0, dtype=torch.int64, device="cuda")
    write_scores(ImportancePredictor(8, (4, 2)).cuda(), torch.zeros(0, 8, device="cuda"), empty, pool)
    assert not pool.scores.any()


@pytest.mark.parametrize(
    "case",
    [
        Moved(30, 12, fixed=5),
        Moved(7, 1),
        Moved(20, 20, fixed=4),
        Moved(20, 0),
        Moved(5000, 2100, fixed=300, layers=3, heads=4),
        Moved(5000, 4900, ties=True, heads=8),
        Moved(20_000, 8000, layers=28, heads=4, tensors=KV),
    ],
    ids=str,
)
def test_heads_are_moved_as_by_torch(case):
    for seed in range(3):
        check_moves(case, seed, move_heads, "cuda")


def test_sets_per_head_never_wait_for_the_device_and_move_without_memory():
    buffers = HeadBuffers.of([[torch.zeros(500, 4, 128, device="cuda") for _ in "kv"]])
    scores, slots = torch.rand(1, 4, 400, device="cuda"), torch.randperm(500, device="cuda")[:400]
    fixed = torch.zeros(400, dtype=torch.bool, device="cuda")
    move_heads(plan_moves(scores, fixed, slots, 100), buffers)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        moves = plan_moves(scores, fixed, slots, 100)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        move_heads(moves, buffers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() == before
