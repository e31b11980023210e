"""When K and V move for a set of tokens per head: before the next forward, never under another one."""

from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Req

from sglang_dynts.forward.device_state import carry_out_moves
from sglang_dynts.telling.reporting import report_now
from tests.seam.engine import PROMPT, Engine, thoughts

BY_HEAD = {"dynts": {"policy": "random_per_head"}}


@pytest.fixture
def engine(serve) -> Engine:
    serve("--attention-backend", "dynts")
    return Engine()


def layers(engine: Engine) -> list[torch.Tensor]:
    pool: Any = engine.kv
    return [*pool.k_buffer, *pool.v_buffer]


def forward(engine: Engine) -> None:
    """What a forward does first."""
    carry_out_moves(None, None, None, engine.scheduler.tp_worker.model_runner)


def held(engine: Engine, req: Req, head: int) -> list[list[float]]:
    """Of each layer's K and V, the tokens that a head holds, by column."""
    row = engine.rows.req_to_token[req.kv.req_pool_idx, : req.kv.kv_allocated_len].long()
    return [buffer[row, head, 0].tolist() for buffer in layers(engine)]


def grown(engine: Engine, count: int, custom: dict | None = BY_HEAD, first: int = 100) -> Req:
    """A request whose K and V are its tokens' positions, in every layer and head."""
    req = engine.prefill(PROMPT, custom)
    row = engine.rows.req_to_token[req.kv.req_pool_idx, : len(PROMPT)].long()
    for buffer in layers(engine):
        buffer[row] = torch.arange(4.0)[:, None, None]
    for position, token in enumerate(thoughts(first, count), start=len(PROMPT)):
        decode(engine, req, position, token)
    return req


def decode(engine: Engine, req: Req, position: int, token: int = 99) -> None:
    """One token whose K and V are its position."""
    engine.decode(req, [token])
    forward(engine)
    slot = engine.rows.req_to_token[req.kv.req_pool_idx, req.kv.kv_allocated_len - 1]
    for buffer in layers(engine):
        buffer[slot] = position


def about_to_compact(engine: Engine) -> Req:
    """A request that holds 20 tokens and whose next round compacts it; a forward of its newest runs."""
    req = grown(engine, 15)
    assert engine.governed(req).dropped == 0
    row = engine.rows.req_to_token[req.kv.req_pool_idx]
    row[19] = engine.alloc(1)
    req.kv.kv_allocated_len = req.kv.kv_committed_len = 20
    req.output_ids.append(115)
    for buffer in layers(engine):
        buffer[row[19]] = 19
    return req


def test_each_head_holds_its_own_tokens_oldest_first_once_the_forward_in_flight_is_done(engine):
    req = about_to_compact(engine)
    before = held(engine, req, 0)
    slots = engine.rows.req_to_token[req.kv.req_pool_idx, :20].long()
    engine.compact(req)
    for buffer in layers(engine):  # the forward in flight reads on what it was given
        assert buffer[slots, 0, 0].tolist() == before[0] == [*range(20)]
    forward(engine)
    chosen = [held(engine, req, head) for head in (0, 1)]
    for head in chosen:
        for positions in head:
            assert positions == sorted(positions)
            assert positions[:4] == [0, 1, 2, 3]
            assert positions[-6:] == [14, 15, 16, 17, 18, 19]
            assert len(positions) == 13
        assert head[:2] == head[2:]  # V follows K
    assert len({str(one) for head in chosen for one in head}) == 4  # two layers of two heads
    engine.check_conservation(req)


def test_a_compaction_that_the_forward_in_flight_did_not_see_is_undone_and_moves_nothing(engine):
    req = about_to_compact(engine)
    engine.compact(req)
    forward(engine)
    for position in range(20, 26):
        decode(engine, req, position)
    newest = engine.rows.req_to_token[req.kv.req_pool_idx, 19] = engine.alloc(1)
    req.kv.kv_allocated_len = req.kv.kv_committed_len = 20
    req.output_ids.append(122)
    before = [held(engine, req, head) for head in (0, 1)]
    engine.compact(req)
    assert engine.governed(req).dropped == 14
    engine.retract(req)
    assert newest in engine.slots.free_pages
    assert (engine.copied(req), engine.governed(req).dropped) == (19, 7)
    forward(engine)
    engine.check_conservation()
    engine.admit(req)
    for head in (0, 1):
        assert [one[:19] for one in held(engine, req, head)] == [one[:19] for one in before[head]]


def test_a_copy_of_a_request_that_stays_compacted_holds_what_its_heads_chose(engine):
    req = about_to_compact(engine)
    req.output_ids.append(116)  # sampled: the forward is done, the next one not launched
    engine.compact(req)
    engine.retract(req)
    assert (engine.copied(req), engine.governed(req).dropped) == (13, 7)
    engine.admit(req)
    heads = [held(engine, req, head)[0] for head in (0, 1)]
    assert heads[0][:4] == heads[1][:4] == [0, 1, 2, 3]
    assert heads[0][-7:-1] == heads[1][-7:-1] == [14, 15, 16, 17, 18, 19]
    assert heads[0] != heads[1]


def test_what_comes_back_from_the_host_does_not_overwrite_what_is_still_to_move(engine):
    back = grown(engine, 30, first=300)
    for buffer in layers(engine):
        buffer += 1000
    wanted = held(engine, back, 1)
    back.output_ids.append(330)  # sampled: no forward is in flight
    engine.retract(back)
    assert engine.copied(back) == len(wanted[0])
    req = about_to_compact(engine)
    freed = set(engine.rows.req_to_token[req.kv.req_pool_idx, :20].tolist())
    engine.compact(req)
    freed -= set(engine.rows.req_to_token[req.kv.req_pool_idx, :13].tolist())
    engine.alloc(engine.slots.available_size() - len(wanted[0]) - 1)  # the first of those that are free
    engine.admit(back)
    row = engine.rows.req_to_token[back.kv.req_pool_idx, : len(wanted[0])]
    assert len(freed.intersection(row.tolist())) >= 6
    forward(engine)
    assert [one[4:-1] for one in held(engine, back, 1)] == [
        one[4:] for one in wanted
    ]  # behind the prompt
    for head in (0, 1):
        for positions in held(engine, req, head):
            assert positions == sorted(positions)
            assert max(positions) == 19


def test_answers_stay_where_they_are_in_every_head(engine):
    req = engine.prefill(PROMPT, BY_HEAD)
    tokens = [*thoughts(100, 4), 2, 70, 71, 1, *thoughts(200, 60)]  # two answers between thinking
    for position, token in enumerate(tokens, start=len(PROMPT)):
        decode(engine, req, position, token)
    assert engine.governed(req).num_compactions >= 3
    columns = [held(engine, req, head)[0].index(8) for head in (0, 1)]
    assert columns[0] == columns[1]
    for head in (0, 1):
        for positions in held(engine, req, head):
            assert positions[columns[0] : columns[0] + 4] == [8, 9, 10, 11]


def test_the_share_of_heads_that_hold_a_token_is_told(engine):
    req = grown(engine, 40, {"dynts": BY_HEAD["dynts"] | {"return_tokens": True}})
    sets = [set(positions) for head in (0, 1) for positions in held(engine, req, head)]
    engine.finish(req)
    told: Any = report_now(engine.governor, req)
    shares = told["tokens"]["held_by"]
    assert len(shares) >= 40
    assert shares == [sum(at in one for one in sets) / len(sets) for at in range(len(shares))]
    assert len(set(shares)) > 2
    gone = {position for drop in told["tokens"]["dropped"] for position in drop["positions"]}
    assert gone == {at for at, share in enumerate(shares) if not share}
