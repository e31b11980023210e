"""Speculative decoding: what a compaction does to lengths, slots and results that a step left behind."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sgl_dynts.config import DynTSConfig
from sgl_dynts.due import NEVER
from sglang_dynts.forward.device_state import DeviceState
from sglang_dynts.forward.drafts import add_positions_at_the_door, move_scores_along
from sglang_dynts.scheduling.capacity_state import DecodeStep
from sglang_dynts.scheduling.round import compact_requests
from sglang_dynts.scheduling.speculation import clip, skip_settled, stop_where_due
from tests.seam.engine import Engine, accept, batch_of, thoughts

STEP = DecodeStep(num_tokens=4, spare_slots=8)


@pytest.fixture
def engine(serve) -> Engine:
    """One that compacts where the budget of 20 is reached and nowhere else."""
    serve("--attention-backend", "dynts", "--speculative-algorithm", "NGRAM")
    engine = Engine(step=STEP)
    engine.capacity.elastic = False
    return engine


@pytest.mark.parametrize(("length", "held"), [(16, 16), (17, 13), (18, 13)])
def test_a_compaction_comes_before_the_step_that_would_have_to_stop_for_it(engine, length, held):
    """A step adds up to four tokens, so three before the budget it may pass it."""
    engine.capacity.elastic = True
    req = decoding(engine, length)
    assert req.kv.kv_committed_len == held
    numbers = engine.governed(req).as_dict(held)
    assert numbers["compactions"] == numbers["early_compactions"] == (held < length)
    engine.check_conservation(req)


def test_a_period_that_is_shorter_than_a_step_still_gives_something(engine):
    engine.capacity.elastic = True
    engine.governor.config = DynTSConfig(budget=20, local_window=16, keep_ratio=0.5)  # period 2
    req = decoding(engine, 60)
    assert 18 <= req.kv.kv_committed_len <= 23
    assert engine.governed(req).num_compactions > 5
    engine.check_conservation(req)


def row_of(engine: Engine, req) -> list[int]:
    return engine.rows.req_to_token[req.kv.req_pool_idx, : req.kv.kv_allocated_len].tolist()


def decoding(engine: Engine, length: int):
    """A request of four question tokens that has computed so many tokens, in steps of four."""
    req = engine.prefill(thoughts(100, 4))
    req.output_ids.append(104)
    for first in range(4, length, 4):
        engine.speculate(req, thoughts(101 + first, min(4, length - first)))
    return req


def test_slots_that_are_held_ready_move_along_with_the_newest_tokens(engine):
    req = decoding(engine, 19)
    engine.hold_ready(req)
    accept(req, [120])
    before = row_of(engine, req)
    engine.compact(req)
    after = row_of(engine, req)
    assert (req.kv.kv_committed_len, len(before) - len(after)) == (13, 7)
    assert after[-13:] == before[-13:]  # 6 of the local window, and 7 held ready
    assert engine.governed(req).as_dict(0) | {"window_len": 13, "peak_window_len": 20} == engine.governed(
        req
    ).as_dict(13)
    engine.check_conservation(req)
    engine.finish(req)
    engine.check_conservation()


def test_a_request_that_is_retracted_after_a_compaction_keeps_it(engine):
    req = decoding(engine, 20)
    assert req.kv.kv_committed_len == 13
    engine.retract(req)
    assert engine.governed(req).num_compactions == 1
    assert engine.copied(req) == 13
    engine.check_conservation()


class Overlap:
    """A scheduler one step ahead of its results."""

    def __init__(self, engine: Engine, req, tokens: list[int]) -> None:
        self.engine, self.req, self.tokens = engine, req, tokens
        self.result = object()
        engine.hold_ready(req)
        rows = torch.tensor([req.kv.req_pool_idx])
        self.flying = SimpleNamespace(forward_mode=ForwardMode.DECODE, reqs=[req], req_pool_indices=rows)
        published = torch.zeros(8, dtype=torch.int64)
        published[req.kv.req_pool_idx] = req.kv.kv_committed_len + len(tokens)
        vars(engine.scheduler).update(
            enable_overlap=True,
            result_queue=[(self.flying, self.result)],
            process_batch_result=self.process,
            future_map=SimpleNamespace(
                new_seq_lens_buf=published,
                spec_algo=SpeculativeAlgorithm.NGRAM,
                accept_lens_buf=torch.full((8,), len(tokens), dtype=torch.int32),
            ),
        )

    def process(self, batch, result) -> None:
        assert (batch, result) == (self.flying, self.result)
        accept(self.req, self.tokens)

    def round(self) -> None:
        batch = batch_of(self.req)
        batch.batch_size = lambda: len(batch.reqs)
        batch.filter_batch = lambda: None
        compact_requests(self.engine.scheduler, batch)

    @property
    def relayed(self) -> int:
        """Tokens that SGLang's n-grams will add to the request's outputs."""
        return int(self.engine.scheduler.future_map.accept_lens_buf[self.req.kv.req_pool_idx])

    @property
    def published(self) -> int:
        return int(self.engine.scheduler.future_map.new_seq_lens_buf[self.req.kv.req_pool_idx])


def test_a_round_waits_for_a_step_that_may_reach_the_budget(engine):
    req = decoding(engine, 17)
    overlap = Overlap(engine, req, [120, 121, 122])
    overlap.round()
    assert (req.kv.kv_committed_len, overlap.published) == (13, 13)
    assert overlap.flying.reqs == []  # SGLang looks there for requests whose last token is in flight
    assert overlap.relayed == 0  # the outputs hold them
    assert int(engine.scheduler.future_map.accept_lens_buf.sum()) == 3 * 7  # other rows' are in flight
    seen = []
    skip_settled(lambda *args: seen.append(args), engine.scheduler, overlap.flying, overlap.result)
    skip_settled(lambda *args: seen.append(args), engine.scheduler, "next", "result")
    assert [args[1:] for args in seen] == [("next", "result")]
    engine.check_conservation(req)


def test_a_step_that_reached_less_leaves_its_lengths(engine):
    req = decoding(engine, 17)
    overlap = Overlap(engine, req, [120])
    overlap.round()
    assert (req.kv.kv_committed_len, overlap.published) == (18, 18)


def test_a_round_does_not_wait_for_a_step_that_cannot_reach_the_budget(engine):
    req = decoding(engine, 15)
    overlap = Overlap(engine, req, [120, 121, 122, 123])
    overlap.round()
    assert (req.kv.kv_committed_len, overlap.published, overlap.relayed) == (15, 19, 4)
    assert overlap.flying.reqs == [req]


def test_a_batch_that_computes_prompts_adds_to_no_window(engine):
    req = decoding(engine, 17)
    overlap = Overlap(engine, req, [])
    overlap.flying.forward_mode = ForwardMode.EXTEND
    overlap.round()
    assert overlap.flying.reqs == [req]


def test_accepted_tokens_are_cut_to_the_room_and_never_to_nothing():
    lens = torch.tensor([3, 3, 2, 1, 3], dtype=torch.int32)
    index = torch.tensor([[0, 2, 3], [4, 5, 7], [8, 9, -1], [12, -1, -1], [16, 17, 19]])
    found = clip(lens, index.int(), torch.tensor([5, 2, 0, -9, NEVER]))
    assert found[0].tolist() == [3, 2, 1, 1, 3]
    assert found[1].tolist() == [[0, 2, 3], [4, 5, -1], [8, -1, -1], [12, -1, -1], [16, 17, 19]]
    assert (found[0].dtype, found[1].dtype) == (torch.int32, torch.int32)


@pytest.mark.parametrize(("length", "accepted"), [(17, 3), (15, 4)])
def test_a_verification_stops_where_its_request_is_due(engine, length, accepted):
    req = decoding(engine, length)
    batch = SimpleNamespace(
        tree_cache=engine.cache,
        forward_mode=ForwardMode.TARGET_VERIFY,
        sampling_info=SimpleNamespace(sampling_seed=None),
        seq_lens=torch.tensor([length]),
        reqs=[req],
        req_pool_indices_cpu=torch.tensor([req.kv.req_pool_idx]),
    )
    result = torch.zeros(4), torch.tensor([4]), torch.arange(4)[None]
    _, lens, index = stop_where_due(lambda *_args: result, None, batch)
    assert lens.tolist() == [accepted]
    assert index.tolist() == [[0, 1, 2, 3][:accepted] + [-1] * (4 - accepted)]


def test_coins_of_a_seeded_request_do_not_repeat_after_a_compaction(engine):
    req = decoding(engine, 20)
    assert engine.governed(req).dropped == 7
    rows = torch.tensor([req.kv.req_pool_idx])
    batch = SimpleNamespace(
        tree_cache=engine.cache,
        forward_mode=ForwardMode.TARGET_VERIFY,
        sampling_info=SimpleNamespace(sampling_seed=torch.tensor([1])),
        seq_lens=torch.tensor([13]),
        reqs=[req],
        req_pool_indices=rows,
        req_pool_indices_cpu=rows,
    )
    drawn_by = []

    def sample(_verify_input, batch):
        drawn_by.append(batch.seq_lens.tolist())
        return torch.zeros(4), torch.tensor([1]), torch.zeros(1, 4)

    stop_where_due(sample, None, batch)
    assert drawn_by == [[20]]
    assert batch.seq_lens.tolist() == [13]


def test_a_draft_decodes_at_original_positions_and_extends_at_given_ones():
    state = DeviceState(10, torch.zeros(4, 1))
    state.dropped[:] = torch.tensor([0, 0, 7, 100])
    seen = []
    model = SimpleNamespace(forward=lambda _ids, at, _batch, extra: seen.append((at, extra)))
    add_positions_at_the_door(model, state)
    counted = torch.tensor([12, 13, 5, 6])
    for mode in (ForwardMode.DECODE, ForwardMode.EXTEND):
        batch = SimpleNamespace(forward_mode=mode, req_pool_indices=torch.tensor([3, 1]))
        model.forward(None, counted, batch, extra="kept")
    assert [(positions.tolist(), extra) for positions, extra in seen] == [
        ([112, 113, 5, 6], "kept"),
        ([12, 13, 5, 6], "kept"),
    ]
    assert counted.tolist() == [12, 13, 5, 6]


def test_scores_follow_accepted_tokens_to_their_slots():
    state = DeviceState(6, torch.zeros(2, 1))
    state.scores.scores[:] = torch.arange(6.0)
    moved = []
    pool = SimpleNamespace(move_kv_cache=lambda tgt, src: moved.append((tgt.tolist(), src.tolist())))
    move_scores_along(pool, state.scores)
    pool.move_kv_cache(torch.tensor([1, 2, 0]), torch.tensor([2, 4, 0]))
    assert moved == [([1, 2, 0], [2, 4, 0])]
    assert state.scores.scores.tolist() == [0, 2, 4, 3, 4, 5]
