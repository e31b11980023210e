"""What became of every token of a request that asked: its score, and which compaction dropped it."""

from typing import Any

import numpy as np
import pytest
from sglang.srt.managers.schedule_batch import Req

from sglang_dynts.entry.token_log import NEWEST, TokenLog
from sglang_dynts.telling.reporting import report_now
from tests.seam.engine import PROMPT, Engine, thoughts

ASKED = {"dynts": {"return_tokens": True}}
CLOSE = 2


@pytest.fixture
def engine(serve) -> Engine:
    serve("--attention-backend", "dynts")
    return Engine()


def score(position: int) -> float:
    """A score that names its position and is in no order."""
    return float((position * 37) % 101)


def admit(engine: Engine, custom: dict | None = ASKED) -> Req:
    req = engine.prefill(PROMPT, custom)
    write_scores(engine, req, len(PROMPT))
    return req


def write_scores(engine: Engine, req: Req, count: int) -> None:
    """Score the newest tokens of a request as their forward would."""
    end = req.kv.kv_allocated_len
    row = engine.rows.req_to_token[req.kv.req_pool_idx, end - count : end].long()
    dropped = engine.governed(req).dropped
    for column, slot in enumerate(row.tolist(), start=end - count):
        engine.device.scores.scores[slot] = score(column + dropped)


def told(engine: Engine, req: Req) -> Any:
    """What the client reads under ``meta_info.dynts``."""
    return report_now(engine.governor, req)


def live(engine: Engine, req: Req, tokens: list[int]) -> list[dict]:
    """Decode these tokens; what each part of a stream told."""
    parts = []
    for token in tokens:
        parts.append(told(engine, req)["tokens"])
        engine.decode(req, [token])
        write_scores(engine, req, 1)
    return parts


def held_positions(engine: Engine, req: Req) -> list[int]:
    """Positions that the slots of a row are scored for."""
    row = engine.rows.req_to_token[req.kv.req_pool_idx, : req.kv.kv_allocated_len].long()
    by_score = {score(position): position for position in range(101)}
    return [by_score[value] for value in engine.device.scores.scores[row].tolist()]


def test_scores_and_drops_are_those_of_the_row(engine):
    req = admit(engine)
    live(engine, req, thoughts(100, 40))
    held = held_positions(engine, req)
    engine.finish(req)
    tokens = told(engine, req)["tokens"]
    assert tokens["scores"] == [score(position) for position in range(43)]  # the newest was not computed
    gone = [position for drop in tokens["dropped"] for position in drop["positions"]]
    assert sorted(gone + held) == list(range(44))
    assert len(tokens["dropped"]) >= 3
    for drop in tokens["dropped"]:
        assert len(PROMPT) <= min(drop["positions"])
        assert max(drop["positions"]) < drop["seq_len"] - 6  # the local window


def test_drafts_accepted_behind_the_last_token_are_not_told(engine):
    req = admit(engine)
    live(engine, req, thoughts(100, 37))
    engine.decode(req, thoughts(137, 3))
    write_scores(engine, req, 3)
    engine.finish(req, num_behind=2)
    numbers = told(engine, req)
    assert numbers["tokens"]["scores"] == [score(position) for position in range(41)]
    assert numbers["window_len"] + numbers["dropped_tokens"] == 42


def test_the_parts_of_a_stream_add_up_to_the_whole(engine):
    req = admit(engine)
    parts = live(engine, req, thoughts(100, 90))
    engine.finish(req)
    whole = told(engine, req)["tokens"]
    scores, drops = {}, {}
    for part in parts[::NEWEST]:  # a client that sees few of them
        scores |= dict(enumerate(part["scores"], start=part["first"]))
        drops |= {drop["seq_len"]: drop["positions"] for drop in part["dropped"]}
        assert len(part["scores"]) <= NEWEST
        assert all(drop["seq_len"] > part["first"] for drop in part["dropped"])
    assert scores.items() <= dict(enumerate(whole["scores"])).items()
    assert drops.items() <= {drop["seq_len"]: drop["positions"] for drop in whole["dropped"]}.items()
    assert len(scores) > NEWEST


def test_who_does_not_ask_is_told_nothing(engine):
    req = admit(engine, custom=None)
    engine.decode(req, thoughts(100, 20))
    assert "tokens" not in told(engine, req)


def test_answer_tokens_keep_the_score_they_were_born_with(engine):
    req = admit(engine)
    live(engine, req, [*thoughts(100, 10), CLOSE, *thoughts(200, 40)])
    engine.finish(req)
    tokens = told(engine, req)["tokens"]
    assert tokens["scores"] == [score(position) for position in range(len(tokens["scores"]))]


def test_an_opted_out_request_has_scores_and_drops_nothing(engine):
    req = admit(engine, {"dynts": {"return_tokens": True, "enabled": False}})
    live(engine, req, thoughts(100, 30))
    engine.finish(req)
    tokens = told(engine, req)["tokens"]
    assert tokens == {"first": 0, "scores": [score(position) for position in range(33)], "dropped": []}


def test_an_undone_compaction_and_a_restart_leave_no_trace():
    log = TokenLog()
    log.learn(np.arange(6), np.arange(6, dtype=np.float32))
    log.compacted(6, log.positions(6, 0), np.array([[0, 1, 3, 4, 5]]))
    assert log.positions(6, 1).tolist() == [[0, 1, 3, 4, 5, 6]]
    log.undo()
    assert log.positions(6, 0).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert log.whole()["dropped"] == []
    log.restart()
    assert log.whole() == {"first": 0, "scores": [], "dropped": []}


def test_a_score_that_is_not_finite_is_none_and_changes_nothing():
    log = TokenLog()
    log.learn(np.arange(2), np.array([1.23456, np.inf], dtype=np.float32))
    log.learn(np.arange(1), np.array([np.inf], dtype=np.float32))
    assert log.whole()["scores"] == [1.235, None]


def test_where_heads_hold_their_own_sets_the_share_that_holds_a_token_is_told():
    log = TokenLog()
    log.learn(np.arange(6), np.zeros(6, dtype=np.float32))
    log.learn_by_set(np.array([[1, 2, 3]]), np.array([[1.0, 2, 3], [3, 2, 1]]))
    log.compacted(6, log.positions(6, 0), np.array([[0, 1, 4, 5], [0, 3, 4, 5]]))
    log.learn(np.array([6]), np.array([0.5]))
    assert log.positions(5, 2).tolist() == [[0, 1, 4, 5, 6], [0, 3, 4, 5, 6]]
    log.learn_by_set(log.positions(5, 2)[:, 1:3], np.array([[8.0, 4], [9, 2]]))
    assert log.whole() == {
        "first": 0,
        "scores": [0, 8, 2, 9, 3, 0, 0.5],
        "dropped": [{"seq_len": 6, "positions": [2]}],
        "held_by": [1, 0.5, 0, 0.5, 1, 1, 1],
    }


def test_answers_keep_their_scores_beside_a_request_of_another_policy(engine):
    """Both are compacted in one round; what marks the one's answers is not read as the other's score."""
    tokens = [*thoughts(100, 9), CLOSE, 70, 71, 1, *thoughts(200, 7)]
    reqs = [admit(engine), engine.prefill([60, 61, 62, 63], {"dynts": {"policy": "random_per_head"}})]
    for req in reqs:
        row = engine.rows.req_to_token[req.kv.req_pool_idx]
        row[4:24] = engine.alloc(len(tokens))
        req.kv.kv_allocated_len = req.kv.kv_committed_len = 24
        req.output_ids.extend(tokens)
        req.decode_batch_idx = 1
        write_scores(engine, req, len(tokens))
    engine.compact(*reqs)
    assert [engine.governed(req).num_compactions for req in reqs] == [1, 1]
    engine.finish(reqs[0])
    scores = told(engine, reqs[0])["tokens"]["scores"]
    assert scores[:23] == [score(position) for position in range(23)]


def test_a_prompt_that_came_with_its_k_and_v_has_no_scores():
    log = TokenLog(num_unscored=2)
    log.learn(np.arange(4), np.array([9.0, 8.0, 7.0, 6.0], dtype=np.float32))
    assert log.whole()["scores"] == [None, None, 7.0, 6.0]
    log.restart()
    log.learn(np.arange(3), np.array([5.0, 4.0, 3.0], dtype=np.float32))
    assert log.whole()["scores"] == [None, None, 3.0]
