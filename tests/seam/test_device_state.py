"""The device state of one model runner."""

from types import SimpleNamespace

import torch

from sgl_dynts.checkpoint import find_predictor, load_predictor
from sglang_dynts.forward.device_state import (
    _RUNNERS,
    DeviceState,
    OnRunner,
    loaded_from,
    on_runner,
    state_of,
)
from sglang_dynts.forward.predictor_runner import score_tokens


class Runner:
    """What the runtime's table of model runners is keyed by."""


class Resumed:
    """A request whose KV came back in row 2."""

    kv = SimpleNamespace(req_pool_idx=2)


def device_state(dropped: list[int]) -> DeviceState:
    state = DeviceState(6, torch.zeros(len(dropped), 1))
    state.dropped[:] = torch.tensor(dropped)
    state.rows_with_drops = {row for row, count in enumerate(dropped) if count}
    return state


def test_a_new_owner_of_a_row_has_dropped_nothing():
    state = device_state([0, 5, 6, 7])
    state.reset_rows([1, 3])
    assert (state.dropped.tolist(), state.rows_with_drops) == ([0, 0, 6, 0], {2})


def test_rows_that_dropped_nothing_cost_nothing():
    state = device_state([0, 0, 6, 0])
    before = state.dropped._version
    state.reset_rows([1, 3])
    assert (state.dropped._version, state.rows_with_drops) == (before, {2})


def test_the_counters_stay_where_a_captured_graph_expects_them():
    state = device_state([0, 5])
    address = state.dropped.data_ptr()
    state.reset_rows([1])
    assert state.dropped.data_ptr() == address


def test_the_same_batch_is_looked_up_once():
    state, rows = device_state([0, 5, 6]), torch.tensor([2, 1])
    first = state.dropped_of(rows)
    assert first.tolist() == [6, 5]
    assert state.dropped_of(rows) is first
    assert state.dropped_of(torch.tensor([1])).tolist() == [5]
    assert state.dropped_of(rows).tolist() == [6, 5]


def test_a_batch_is_looked_up_again_once_a_row_has_a_new_owner():
    state, rows = device_state([0, 5, 6]), torch.tensor([2, 1])
    state.dropped_of(rows)
    state.reset_rows([2])
    assert state.dropped_of(rows).tolist() == [0, 5]


def test_a_batch_is_looked_up_again_once_a_request_is_resumed():
    state, rows = device_state([0, 5, 0]), torch.tensor([2, 1])
    state.dropped_of(rows)
    state.resumed[req := Resumed()] = 9
    state.resume_rows([req])
    assert state.dropped_of(rows).tolist() == [9, 5]


def test_scores_of_a_forward_land_in_its_slots(model):
    source = find_predictor(model)
    predictor = load_predictor(source)
    state = device_state([0])
    hidden = torch.randn(2, predictor.hidden_size)
    ours = OnRunner(loaded_from(source, predictor), state)
    score_tokens(ours, hidden, torch.tensor([5, 2], dtype=torch.int32))
    assert state.scores.scores[[5, 2]].tolist() == predictor(hidden).tolist()
    assert state.scores.scores[[0, 1, 3, 4]].tolist() == [0, 0, 0, 0]


def test_a_forward_before_the_pools_exist_is_not_scored():
    score_tokens(OnRunner(), torch.zeros(1, 4), torch.zeros(1).long())


def test_the_state_goes_with_its_runner():
    runner = Runner()
    on_runner(runner).state = device_state([0])
    assert state_of(runner) is on_runner(runner).state
    num_before = len(_RUNNERS)
    del runner
    assert len(_RUNNERS) == num_before - 1
