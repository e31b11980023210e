"""Positions count what a request has seen, not what it holds."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_dynts.forward.device_state import DeviceState, on_runner, state_of
from sglang_dynts.forward.positions import restore_positions


class Runner:
    """What the runtime's table of model runners is keyed by."""

    is_draft_worker = False


@pytest.fixture
def runner() -> Runner:
    """Row 2 has dropped 7 tokens, row 3 has dropped 100, row 1 none."""
    runner = Runner()
    state = on_runner(runner).state = DeviceState(10, torch.zeros(4, 1))
    state.dropped[:] = torch.tensor([0, 0, 7, 100])
    state.rows_with_drops |= {2, 3}
    return runner


def positions(
    runner, mode: ForwardMode, rows: list[int], now: list[int], lens=None, mrope=False
) -> list[int]:
    batch = SimpleNamespace(
        forward_mode=mode,
        positions=torch.tensor(now, dtype=torch.int64),
        req_pool_indices=torch.tensor(rows),
        extend_seq_lens=None if lens is None else torch.tensor(lens, dtype=torch.int32),
        extend_num_tokens=None if lens is None else sum(lens),
        mrope_positions=torch.tensor(now, dtype=torch.int64).expand(3, -1) if mrope else None,
    )
    assert restore_positions(batch, None, None, runner) is None
    assert batch.positions.dtype == torch.int64
    if mrope:
        assert batch.mrope_positions.tolist() == [batch.positions.tolist()] * 3
    return batch.positions.tolist()


def test_decode_adds_what_each_request_dropped(runner):
    assert positions(runner, ForwardMode.DECODE, [3, 1, 2], [12, 5, 40]) == [112, 5, 47]


def test_padding_rows_of_a_decode_batch_stay_at_their_place(runner):
    assert positions(runner, ForwardMode.DECODE, [2, 0, 0], [12, 0, 0]) == [19, 0, 0]


@pytest.mark.parametrize("mode", [ForwardMode.EXTEND, ForwardMode.MIXED])
def test_extend_and_mixed_add_it_to_every_token_of_the_request(runner, mode):
    now = [0, 1, 2, 12, 3, 4]
    assert positions(runner, mode, [1, 3, 2], now, [3, 1, 2]) == [0, 1, 2, 112, 10, 11]


@pytest.mark.parametrize("mode", [ForwardMode.DECODE, ForwardMode.MIXED])
def test_positions_in_three_parts_move_alike(runner, mode):
    lens = [1, 1, 1] if mode is ForwardMode.MIXED else None
    assert positions(runner, mode, [3, 1, 2], [12, 5, 40], lens, mrope=True) == [112, 5, 47]


@pytest.mark.parametrize("mode", [ForwardMode.TARGET_VERIFY, ForwardMode.DRAFT_EXTEND_V2])
def test_every_draft_of_a_request_gets_what_it_dropped(runner, mode):
    assert positions(runner, mode, [3, 2], [12, 13, 13, 40, 41, 41]) == [112, 113, 113, 47, 48, 48]


def test_a_drafts_steps_keep_positions_that_its_attention_reads_rows_by(runner):
    runner.is_draft_worker = True
    assert positions(runner, ForwardMode.DECODE, [3, 1, 2], [12, 5, 40]) == [12, 5, 40]


def test_an_idle_batch_is_left_alone(runner):
    assert positions(runner, ForwardMode.IDLE, [], []) == []


def test_nothing_is_computed_before_anything_is_dropped(runner):
    state = state_of(runner)
    assert state is not None
    state.rows_with_drops.clear()
    assert positions(runner, ForwardMode.DECODE, [3], [12]) == [12]


def test_a_runner_without_dynts_is_left_alone():
    assert positions(Runner(), ForwardMode.DECODE, [3], [12]) == [12]


def test_positions_are_a_new_tensor_since_sglang_may_share_the_old_one(runner):
    old = torch.tensor([12])
    batch = SimpleNamespace(
        mrope_positions=None,
        forward_mode=ForwardMode.DECODE,
        positions=old,
        req_pool_indices=torch.tensor([3]),
    )
    restore_positions(batch, None, None, runner)
    assert (old.tolist(), batch.positions.tolist()) == ([12], [112])
