"""The kernel that moves heads against its torch twin in Triton's interpreter, and built for an H100."""

import re
from argparse import Namespace

import pytest
import torch

from benchmark.gpu import kernels
from benchmark.harness.shapes import WINDOWS, roofline_shape
from sgl_dynts import head_kernels
from sgl_dynts.head_sets import HeadBuffers, HeadMoves, move_heads, move_with_kernels, plan_moves
from sgl_dynts.roofline import H200, head_moves_seconds
from tests.head_cases import KV, MIXED, Moved, check_moves
from tests.unit import test_kernels
from tests.unit.test_kernels import Recorder, compile_within_limits

interpreted = test_kernels.interpreted

TILE = head_kernels.TILE_WORDS // 4
"""Tokens that a program of ``KV`` holds at a time: a head's token is 4 words."""


def check(case: Moved, seed: int) -> None:
    check_moves(case, seed, lambda moves, buffers: move_with_kernels(moves, buffers.groups))


@pytest.mark.parametrize(
    "case",
    [
        Moved(30, 12),
        Moved(30, 12, fixed=5),
        Moved(30, 12, fixed=12),
        Moved(30, 12, fixed=3, ties=True),
        Moved(7, 1),
        Moved(7, 1, fixed=1),
        Moved(1, 1),
        Moved(20, 20),
        Moved(20, 20, fixed=4),
        Moved(20, 0),
        Moved(60, 23, fixed=9, layers=3, heads=5),
    ],
    ids=str,
)
def test_tensors_of_all_widths_are_moved_as_by_torch(interpreted, case):
    for seed in range(3):
        interpreted(check, case, seed)


@pytest.mark.parametrize("num_kept", [TILE - 1, TILE, TILE + 1, 3 * TILE + 5])
@pytest.mark.parametrize("fixed", [0, 40])
def test_more_tokens_than_a_program_holds(interpreted, num_kept, fixed):
    """Half of them are kept, and more, so that a tile's sources lie among the next one's targets."""
    for num in (num_kept + 3, 2 * num_kept):
        interpreted(check, Moved(num, num_kept, fixed, layers=1, tensors=KV), 0)


def test_a_token_that_stays_is_neither_read_nor_written(interpreted):
    interpreted(keep_the_last)


def keep_the_last() -> None:
    """The token that stays is given the slot into which another moves, and would write over it."""
    values = torch.tensor([[10], [11], [12]])
    moves = HeadMoves(torch.tensor([0, 1, 0]), torch.tensor([0, 2]), torch.tensor([[[1, 2]]]))
    move_with_kernels(moves, HeadBuffers.of([[values]]).groups)
    assert values.flatten().tolist() == [11, 11, 12]


def test_a_launch_per_width_serves_all_layers():
    case = Moved(9, 4, layers=3, tensors=(*KV, (torch.float32,)))
    buffers = HeadBuffers.of(
        [[torch.zeros(9, 2, *rest, dtype=dtype) for dtype, *rest in case.tensors] for _ in range(3)]
    )
    keys, scores = buffers.groups
    assert (keys.word_bytes, keys.head_words) == (8, 4)
    assert (scores.word_bytes, scores.head_words) == (4, 1)
    assert keys.tensors[0].tolist() == [each.data_ptr() for pair in buffers.layers for each in pair[:2]]
    assert keys.tensors[1:].tolist() == [[8] * 6, [0, 0, 1, 1, 2, 2]]
    assert scores.tensors[1:].tolist() == [[2] * 3, [0, 1, 2]]


def test_tensors_whose_heads_do_not_lie_together_are_refused():
    with pytest.raises(AssertionError):
        HeadBuffers.of([[torch.zeros(2, 9, 4).transpose(0, 1)]])
    with pytest.raises(AssertionError):
        HeadBuffers.of([[torch.zeros(9, 2, 8)[..., :4]]])


def test_moves_of_other_layers_or_heads_are_refused():
    moves = plan_moves(torch.rand(1, 3, 6), torch.zeros(6, dtype=torch.bool), torch.arange(6), 2)
    with pytest.raises(AssertionError):
        move_heads(moves, HeadBuffers.of([[torch.zeros(6, 2, 4)]]))


def test_where_there_is_no_gpu_torch_moves():
    check_moves(Moved(30, 12, fixed=5), 0, move_heads)


def test_a_benchmark_counts_no_more_bytes_than_the_roofline():
    args = Namespace(shape="tiny", repeats=1)
    choice, moves, moved = kernels.head_cells(args, torch.device("cpu"), H200, 2, 384)
    assert [cell.bench for cell in (choice, moves, moved)] == ["choice per head", *2 * ["moves per head"]]
    assert choice.dynts
    assert moves.dynts
    assert moved.dynts
    kept = kernels.compaction_round(WINDOWS["tiny"], 2, 384).cuts[0].num_kept
    read_and_written = 2 * kept * roofline_shape("tiny").kv_token_bytes * 2  # float32, not bfloat16
    most = 2 * read_and_written
    assert 0.9 * most < 1e6 * moved.dynts <= most
    assert moves.prediction == {"dynts": 2e3 * head_moves_seconds(H200, roofline_shape("tiny"), kept)}


@pytest.mark.parametrize(
    "width", [(torch.bfloat16, 128), (torch.bfloat16, 256), *MIXED], ids=lambda width: f"{width}"
)
def test_what_is_launched_compiles_for_an_h100_within_its_registers(width, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    recorder = Recorder(head_kernels.move_heads_kernel)
    monkeypatch.setattr(head_kernels, "move_heads_kernel", recorder)
    check(Moved(9, 0, layers=1, tensors=(width,)), 0)
    compiled, usage = compile_within_limits(recorder, tmp_path)
    assert max(map(int, re.findall(r"REG:(\d+)", usage))) <= 128, usage
    assert all_is_read_before_any_is_written(compiled.asm["ptx"])


def all_is_read_before_any_is_written(ptx: str) -> bool:
    """Whether the warps wait for each other between the last load and the first store."""
    last_load = ptx.rindex("ld.global")
    first_store = ptx.index("st.global")
    return "bar.sync" in ptx[last_load:first_store]
