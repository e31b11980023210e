"""SGLang's real pools, requests and radix tree: nothing of a compacted row is ever shared."""

import pytest
import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from sglang_dynts.scheduling.prefix_cache import DynTSRadixCache
from sglang_dynts.scheduling.round import compact_requests
from tests.seam.engine import MAX_LEN, NUM_SLOTS, OFF, PROMPT, Engine, batch_of, thoughts

OPENED = [*PROMPT, 1]
"""A prompt that opens thinking."""


@pytest.fixture
def engine(serve) -> Engine:
    serve("--attention-backend", "dynts")
    return Engine()


def row_of(engine: Engine, req: Req) -> list[int]:
    return engine.rows.req_to_token[req.kv.req_pool_idx].tolist()


def num_dropped(engine: Engine, req: Req) -> int:
    return engine.window(req).dropped


def compacted_request(engine: Engine) -> tuple[Req, list[int]]:
    """A request that dropped seven of its thirty tokens or more."""
    output = thoughts(100, 30)
    req = engine.prefill(PROMPT)
    engine.decode(req, output)
    assert num_dropped(engine, req) > 0
    return req, output


def follow_up_after_a_compaction(engine: Engine) -> int:
    req, output = compacted_request(engine)
    engine.finish(req)
    return engine.num_shared([*PROMPT, *output])


def test_after_a_compaction_the_tree_gives_the_prompt_and_no_more(engine):
    assert follow_up_after_a_compaction(engine) == 4
    engine.check_conservation()


def test_without_the_clamp_a_follow_up_would_read_the_slots_of_other_tokens(engine, monkeypatch):
    monkeypatch.setattr(DynTSRadixCache, "checkpoint", UnifiedRadixCache.checkpoint)
    assert follow_up_after_a_compaction(engine) == 13


def test_without_the_clamp_a_follow_up_would_read_other_tokens_of_continued_thinking(engine, monkeypatch):
    """The tree would hold the slots that a compaction frees, and give them to others meanwhile."""
    monkeypatch.setattr(DynTSRadixCache, "checkpoint", UnifiedRadixCache.checkpoint)
    req = engine.prefill([*OPENED, *thoughts(100, 20)])
    assert engine.cache.protected_size() == 25
    with pytest.raises(AssertionError, match=r"cache_protected_len=25 cut.first=5"):
        engine.decode(req, thoughts(200, 1))


def test_a_compaction_frees_what_it_drops(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 15))
    assert req.kv.kv_allocated_len == 19
    assert engine.slots.available_size() == NUM_SLOTS - 19
    before, newest = row_of(engine, req), engine.slots.free_pages[0].item()
    engine.decode(req, [115])
    assert (req.kv.kv_allocated_len, req.kv.kv_committed_len) == (13, 13)
    assert engine.slots.available_size() == NUM_SLOTS - 13
    assert row_of(engine, req)[:4] == before[:4]
    assert row_of(engine, req)[7:13] == [*before[14:19], newest]
    assert row_of(engine, req)[13:] == [0] * (MAX_LEN - 13)
    assert engine.device.dropped[req.kv.req_pool_idx] == 7
    engine.check_conservation(req)


def test_the_report_counts_what_happened(engine):
    req, _ = compacted_request(engine)
    held = req.kv.kv_allocated_len
    engine.finish(req)
    assert engine.governed(req).as_dict(0) == {
        "enabled": True,
        "policy": "predictor",
        "question_len": 4,
        "compactions": 3,
        "early_compactions": 0,
        "resumptions": 0,
        "dropped_tokens": 21,
        "window_len": held,
        "peak_window_len": 20,
        "budget": 20,
        "local_window": 6,
        "keep_ratio": 0.5,
    }
    assert (engine.governor.tally.totals.num_compactions, engine.governor.tally.totals.num_dropped) == (
        3,
        21,
    )


def test_a_running_request_has_only_its_prompt_in_the_tree(engine):
    req, output = compacted_request(engine)
    assert engine.num_shared([*PROMPT, *output]) == 4
    assert engine.cache.protected_size() == 4
    engine.check_conservation(req)


def test_a_finished_request_that_dropped_nothing_is_shared_whole(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 5))
    engine.finish(req)
    assert engine.num_shared([*PROMPT, *thoughts(100, 5)]) == 9
    engine.check_conservation()


def test_a_switched_off_request_keeps_everything_and_is_shared_whole(engine):
    req = engine.prefill(PROMPT, OFF)
    engine.decode(req, thoughts(100, 40))
    assert req.kv.kv_allocated_len == 44
    engine.finish(req)
    assert engine.governed(req).as_dict(0)["enabled"] is False
    follow_up = engine.prefill([*PROMPT, *thoughts(100, 40), 99], OFF)
    assert follow_up.num_matched_prefix_tokens == 44


def test_a_second_turn_shares_a_long_first_prompt_whole(engine):
    question = thoughts(300, 50)
    engine.finish(engine.prefill(question))
    assert engine.num_shared(question) == 50


def test_a_shared_prompt_is_never_freed_under_the_other_request(engine):
    first, _ = compacted_request(engine)
    second = engine.prefill(PROMPT)
    engine.decode(second, thoughts(100, 30))
    assert row_of(engine, first)[:3] == row_of(engine, second)[:3]
    engine.check_conservation(first, second)
    engine.finish(first)
    engine.check_conservation(second)
    engine.finish(second)
    engine.check_conservation()


def test_a_retracted_request_starts_anew_and_is_matched_no_further_than_its_prompt(engine):
    other = engine.prefill(PROMPT, OFF)
    engine.decode(other, thoughts(100, 30))
    engine.finish(other)  # the tree now holds the very tokens that the next request thinks
    req, _ = compacted_request(engine)
    engine.retract(req, offload_kv=False)
    assert num_dropped(engine, req) == 0
    engine.check_conservation()
    engine.admit(req)
    assert (req.num_matched_prefix_tokens, req.kv.kv_allocated_len) == (4, 34)
    assert engine.cache.protected_size() == 4
    assert engine.device.dropped[req.kv.req_pool_idx] == 0
    req.decode_batch_idx = 1
    engine.compact(req)
    assert (req.kv.kv_allocated_len, num_dropped(engine, req)) == (13, 21)
    engine.check_conservation(req)
    engine.finish(req)
    engine.check_conservation()


def test_of_a_prompt_that_continues_thinking_the_tree_holds_the_question_alone(engine):
    prompt = [*OPENED, *thoughts(100, 20)]
    req = engine.prefill(prompt)
    assert engine.governed(req).question_len == 5
    assert engine.cache.protected_size() == 5
    engine.decode(req, thoughts(200, 1))
    assert req.kv.kv_allocated_len == 13  # the thinking of the prompt fell like any other
    assert engine.num_shared([*prompt, 200]) == 5
    engine.check_conservation(req)
    engine.finish(req)
    assert engine.num_shared([*prompt, 200]) == 5
    engine.check_conservation()


@pytest.mark.parametrize("chunk", [3, 7, MAX_LEN])
def test_who_repeats_a_prompt_gets_untouched_keys_and_values(engine, chunk):
    """Every slot that a compaction of its thinking freed is poisoned before the prompt comes again."""
    prompt = [*OPENED, *thoughts(100, 20)]
    first = engine.prefill(prompt, chunk=chunk)
    write_kv(engine, first, prompt)
    engine.decode(first, thoughts(200, 1))
    assert num_dropped(engine, first) == 13
    engine.check_conservation(first)
    poison_free_slots(engine)
    for follow_up, custom in ((prompt, None), ([*prompt, 99], OFF)):
        second = engine.prefill(follow_up, custom, chunk=chunk)
        assert second.num_matched_prefix_tokens == 5
        assert read_kv(engine, second, 5) == OPENED
    assert set(read_kv(engine, first, 12)) < set(prompt)
    engine.finish(first)
    poison_free_slots(engine)
    assert read_kv(engine, engine.prefill(prompt, chunk=chunk), 5) == OPENED


def buffers(engine: Engine) -> list[torch.Tensor]:
    """K and V of every layer, [slots, heads, head_dim] each."""
    return [buffer for layer in range(2) for buffer in engine.kv.get_kv_buffer(layer)]


def write_kv(engine: Engine, req: Req, tokens: list[int]) -> None:
    """Let K and V of every layer tell which token they are of."""
    slots = engine.rows.req_to_token[req.kv.req_pool_idx, : len(tokens)].long()
    for buffer in buffers(engine):
        buffer[slots] = torch.tensor(tokens, dtype=buffer.dtype)[:, None, None]


def poison_free_slots(engine: Engine) -> None:
    free = torch.cat([engine.slots.free_pages, engine.slots.release_pages]).long()
    for buffer in buffers(engine):
        buffer[free] = torch.nan


def read_kv(engine: Engine, req: Req, num: int) -> list[int]:
    """The tokens that all K and V in a request's first columns are of."""
    slots = engine.rows.req_to_token[req.kv.req_pool_idx, :num].long()
    found = torch.cat([buffer[slots].flatten(1) for buffer in buffers(engine)], 1)
    assert (found == found[:, :1]).all(), found
    return found[:, 0].int().tolist()


def test_thinking_that_another_request_left_in_the_tree_is_not_shared_for_it_may_be_dropped(engine):
    other = engine.prefill(OPENED, OFF)
    engine.decode(other, thoughts(100, 20))
    engine.finish(other)
    req = engine.prefill([*OPENED, *thoughts(100, 20)])
    assert req.num_matched_prefix_tokens == 5
    engine.decode(req, thoughts(200, 1))
    assert num_dropped(engine, req) == 13
    engine.check_conservation(req)
    follow_up = engine.prefill([*OPENED, *thoughts(100, 20), 99], OFF)
    assert follow_up.num_matched_prefix_tokens == 25
    engine.check_conservation(req, follow_up)


def test_continued_thinking_is_compacted_retracted_and_resumed(engine):
    req = engine.prefill([*OPENED, *thoughts(100, 20)])
    engine.decode(req, thoughts(200, 12))
    dropped, held = num_dropped(engine, req), req.kv.kv_allocated_len
    assert dropped + held == 37
    assert dropped > 12  # more than was generated
    engine.retract(req)
    req.init_next_round_input(engine.cache)
    assert list(req.full_untruncated_fill_ids[req.prefix_len :]) == [211]
    engine.admit(req)
    assert (req.prefix_len, req.kv.kv_allocated_len, num_dropped(engine, req)) == (held, held, dropped)
    engine.decode(req, thoughts(220, 20))
    assert num_dropped(engine, req) > dropped
    engine.check_conservation(req)
    engine.finish(req)
    engine.check_conservation()


def test_continued_thinking_that_lost_its_kv_without_a_copy_is_computed_again_behind_the_question(engine):
    req = engine.prefill([*OPENED, *thoughts(100, 20)])
    engine.decode(req, thoughts(200, 12))
    engine.retract(req, offload_kv=False)
    assert (engine.copied(req), num_dropped(engine, req)) == (None, 0)
    engine.check_conservation()
    engine.admit(req, chunk=7)
    assert (req.num_matched_prefix_tokens, req.kv.kv_allocated_len) == (5, 37)
    assert engine.cache.protected_size() == 5
    engine.decode(req, thoughts(212, 1))
    assert (req.kv.kv_allocated_len, num_dropped(engine, req)) == (13, 25)
    engine.finish(req)
    engine.check_conservation()


def test_a_request_is_left_alone_until_its_prefill_is_processed(engine):
    req, _ = compacted_request(engine)
    engine.retract(req, offload_kv=False)
    engine.admit(req)
    engine.compact(req)
    assert req.kv.kv_allocated_len == 34


@pytest.mark.parametrize("attribute", ["finished_reason", "beam_group"])
def test_finished_and_beam_requests_are_left_alone(engine, attribute):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 15))
    setattr(req, attribute, FINISH_LENGTH(length=0))
    engine.decode(req, [115])
    assert req.kv.kv_allocated_len == 20


def test_with_the_radix_cache_disabled_compaction_still_frees(serve):
    serve("--attention-backend", "dynts", "--disable-radix-cache")
    engine = Engine(disable=True)
    req, output = compacted_request(engine)
    assert engine.slots.available_size() == NUM_SLOTS - req.kv.kv_allocated_len
    engine.finish(req)
    assert engine.slots.available_size() == NUM_SLOTS
    assert engine.num_shared([*PROMPT, *output]) == 0


def test_lengths_are_rebound_since_a_forward_may_still_read_the_old_ones(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 15))
    req.output_ids.append(115)
    engine.rows.req_to_token[req.kv.req_pool_idx, 19] = engine.alloc(1)
    req.kv.kv_allocated_len = req.kv.kv_committed_len = 20
    batch = batch_of(req)
    batch.seq_lens = batch.seq_lens.to(torch.int32)
    lens, lens_cpu = batch.seq_lens, batch.seq_lens_cpu
    compact_requests(engine.scheduler, batch)
    assert (lens.tolist(), lens_cpu.tolist()) == ([20], [20])
    assert (batch.seq_lens.tolist(), batch.seq_lens_cpu.tolist()) == ([13], [13])
    assert batch.seq_lens.dtype == torch.int32
    assert batch.seq_lens_sum is None
