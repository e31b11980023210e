"""The roofline against values worked out by hand."""

from dataclasses import replace

import pytest

from sgl_dynts.config import PAPER_CONFIGS
from sgl_dynts.roofline import (
    COMPACTION_LAUNCH_SECONDS,
    H100,
    H200,
    HEAD_CHOICE_LAUNCH_SECONDS,
    HEAD_JUDGEMENT_LAUNCH_SECONDS,
    HEAD_MOVES_LAUNCH_SECONDS,
    LLAMA_8B,
    QWEN_7B,
    SLIDE_INTERVAL,
    Experts,
    Gpu,
    ModelShape,
    Pools,
    break_even_tokens,
    causal_pairs,
    compaction_seconds,
    decode_seconds,
    head_choice_seconds,
    head_judgement_seconds,
    head_moves_seconds,
    mean_compacted_len,
    mean_full_len,
    prefill_seconds,
    speedup_at,
)

SLOW = Gpu("slow", 1000, 10_000, 2000, 0.5, 0.1, reserved_bytes=0, step_seconds=0, request_seconds=0)
"""500 bytes/s and 1000 FLOP/s; 1760 bytes for weights and KV."""
TINY = ModelShape("tiny", 1, 1, 1, 2, 4, 10, 200)
"""8 bytes per KV token, 400 bytes of weights of which 320 are read, 8 FLOPs per attended pair."""


def test_kv_bytes_per_token():
    assert QWEN_7B.kv_token_bytes == 57_344
    assert LLAMA_8B.kv_token_bytes == 131_072
    assert TINY.kv_token_bytes == 8


def test_pool_of_an_h200():
    assert QWEN_7B.pool_tokens(H200) == pytest.approx(1_955_000, rel=1e-3)
    assert LLAMA_8B.pool_tokens(H200) == pytest.approx(849_000, rel=1e-3)
    assert TINY.pool_tokens(SLOW) == 170


def test_weights_that_a_step_reads_exclude_the_input_embedding():
    assert QWEN_7B.read_bytes == pytest.approx(14.14e9, rel=1e-3)
    assert LLAMA_8B.read_bytes == pytest.approx(15.01e9, rel=1e-3)
    assert TINY.read_bytes == 320


def test_predictor_of_the_paper():
    assert QWEN_7B.predictor_bytes == pytest.approx(77.1e6, rel=1e-3)
    assert TINY.predictor_bytes == 2 * (4 * 8 + 8 * 2 + 2)


def test_a_decode_step_reads_weights_and_kv():
    assert decode_seconds(SLOW, TINY, 1, 10) == pytest.approx((320 + 80) / 500)


def test_the_weights_of_many_requests_are_bound_by_arithmetic_and_attention_comes_after():
    assert decode_seconds(SLOW, TINY, 5, 10) == pytest.approx(5 * 320 / 1000 + 80 / 500)


def test_a_step_has_seconds_of_its_own_and_of_each_request():
    gpu = replace(SLOW, step_seconds=3, request_seconds=2)
    assert decode_seconds(gpu, TINY, 5, 10) == pytest.approx(
        decode_seconds(SLOW, TINY, 5, 10) + 3 + 5 * 2
    )


@pytest.mark.parametrize(
    ("batch", "kv_tokens", "predictor", "milliseconds"),
    [
        (1, 450, False, 4.67),
        (32, 32 * 450, False, 5.24),
        (32, 32 * 8392, False, 8.48),
        (32, 32 * 3661, True, 6.60),
        (262, 215_320, True, 11.99),
    ],
)
def test_steps_that_an_h200_took(batch, kv_tokens, predictor, milliseconds):
    step = decode_seconds(H200, QWEN_7B, batch, kv_tokens, predictor=predictor)
    assert 1e3 * step == pytest.approx(milliseconds, rel=0.05)


def test_the_predictor_is_read_and_computed():
    assert decode_seconds(SLOW, TINY, 1, 10, predictor=True) == pytest.approx((320 + 100 + 80) / 500)
    assert decode_seconds(SLOW, TINY, 5, 0, predictor=True) == pytest.approx(5 * 420 / 1000)


def test_a_prefill_computes_its_tokens_and_one_head_per_request():
    flops = 10 * (320 - 80) + 2 * 80 + 8 * 55
    assert prefill_seconds(SLOW, TINY, 10, 55, batch=2) == pytest.approx(flops / 1000)


def test_a_prefill_of_one_token_is_bound_by_the_weights():
    assert prefill_seconds(SLOW, TINY, 1, 1) == pytest.approx((320 + 8) / 500)


def test_causal_pairs():
    assert causal_pairs(0, 4) == 1 + 2 + 3 + 4
    assert causal_pairs(10, 2) == 11 + 12


def test_a_compaction_round():
    assert compaction_seconds(SLOW, 0) == 0
    assert compaction_seconds(SLOW, 50) == COMPACTION_LAUNCH_SECONDS + 64 * 50 / 500


def test_heads_judge_choose_and_move():
    shape = replace(TINY, num_layers=3, num_kv_heads=2)
    products = 3 * (TINY.head_dim // 2) ** 2 * 10 * 3 * TINY.num_heads
    judged = max(10 * shape.kv_token_bytes / 500, 2 * products / 1000)
    assert head_judgement_seconds(SLOW, shape, 10) == HEAD_JUDGEMENT_LAUNCH_SECONDS + judged
    assert head_choice_seconds(SLOW, shape, 10) == HEAD_CHOICE_LAUNCH_SECONDS + 400 * 10 * 6 / 500
    assert head_moves_seconds(SLOW, shape, 5) == HEAD_MOVES_LAUNCH_SECONDS + 2 * 5 * 48 / 500


def test_sets_per_head_with_the_papers_windows_take_less_than_a_hundredth_of_decoding():
    """Each of 32 requests compacts by itself and without a question, so that most tokens move."""
    windows = PAPER_CONFIGS["qwen-7b"]
    candidates = windows.budget - windows.local_window
    held = 32 * (windows.budget + windows.retained_len(0)) // 2
    decoding = windows.period * decode_seconds(H200, QWEN_7B, 32, held, predictor=True)
    choosing = 32 * head_choice_seconds(H200, QWEN_7B, candidates)
    moving = 32 * head_moves_seconds(H200, QWEN_7B, windows.selection_len(0))
    assert (candidates, windows.selection_len(0), windows.period) == (3000, 1200, 1800)
    judging = 32 * head_judgement_seconds(H200, QWEN_7B, windows.budget)
    assert judging / decoding < 0.002
    assert head_judgement_seconds(H200, QWEN_7B, windows.budget) < 0.3e-3
    assert moving / decoding == pytest.approx(0.00012, abs=1e-5)
    assert (choosing + moving) / decoding < 0.01


def test_mean_lengths_of_a_generation():
    assert mean_full_len(200, 16384) == 8392
    assert mean_compacted_len(200, 16384, 5000, 3200) == pytest.approx(3661, abs=1)
    assert mean_compacted_len(200, 32768, 5000, 2900) == pytest.approx(3752, abs=1)
    assert mean_compacted_len(200, 1000, 5000, 3200) == mean_full_len(200, 1000)


@pytest.mark.parametrize(
    ("shape", "output_len", "retained", "batch", "expected"),
    [
        (QWEN_7B, 16384, 3200, 1, 1.01),
        (QWEN_7B, 16384, 3200, 32, 1.33),
        (QWEN_7B, 32768, 3200, 32, 1.88),
        (LLAMA_8B, 16384, 2900, 32, 1.58),
    ],
)
def test_speedup_at_equal_batch(shape, output_len, retained, batch, expected):
    full = mean_full_len(200, output_len)
    compacted = mean_compacted_len(200, output_len, 5000, retained)
    assert speedup_at(H200, shape, batch, full, compacted) == pytest.approx(expected, abs=0.01)


def test_break_even():
    assert break_even_tokens(QWEN_7B) == pytest.approx(1344, abs=1)
    saved = break_even_tokens(TINY)
    assert decode_seconds(SLOW, TINY, 1, 10 + saved) == pytest.approx(
        decode_seconds(SLOW, TINY, 1, 10, predictor=True)
    )


@pytest.mark.parametrize(
    ("shape", "decode", "prefill", "tokens"),
    [
        (QWEN_7B, ("0x1.b003c764b3ef3p-8", "0x1.dabd821eee310p-6"), "0x1.a2d6216b19ba9p-3", 966_352),
        (LLAMA_8B, ("0x1.272552e69eac6p-7", "0x1.c383fe508bb8ap-5"), "0x1.cbb7518524dd5p-3", 416_462),
    ],
)
def test_what_was_said_of_dense_models_stands_to_the_last_bit(shape, decode, prefill, tokens):
    """From the formulas as they were before other kinds of layers were known (commit a81ca36)."""
    few = decode_seconds(H200, shape, 32, 32 * 3661.5)
    many = decode_seconds(H100, shape, 262, 262 * 3661.5, predictor=True)
    pairs = causal_pairs(100, 8192)
    assert (few.hex(), many.hex()) == decode
    assert prefill_seconds(H200, shape, 8192, pairs, batch=3, predictor=True).hex() == prefill
    assert shape.pool_tokens(H100) == tokens
    assert shape.pool_share(3661.5) == 3661.5


def test_sliding_layers_hold_and_read_their_window_alone():
    shape = replace(TINY, num_layers=3, sliding_layers=2, sliding_window=5)
    assert (shape.kv_token_bytes, shape.sliding_token_bytes) == (8, 16)
    assert shape.fixed_bytes == (5 + SLIDE_INTERVAL) * 16
    assert shape.cache_traffic(2, 30) == 30 * 8 + 2 * 5 * 16
    assert shape.attention_flops(30, 10) == 8 * 30 + 2 * 8 * 10
    assert shape.pool_share(20) == 20 + (5 + SLIDE_INTERVAL) * 2
    assert shape.pool_tokens(SLOW) == 1360 // 8
    assert shape.pool_tokens(SLOW, 0.5) == 1360 // (8 + 8)
    assert decode_seconds(SLOW, shape, 2, 30) == pytest.approx(2 * 320 / 1000 + 400 / 500)


def test_a_state_is_held_as_often_as_it_is_kept_and_read_and_written_once():
    shape = replace(TINY, num_layers=4, recurrent_layers=3, state_bytes=100, num_states=3)
    assert (shape.kv_token_bytes, shape.fixed_bytes) == (8, 300)
    assert shape.cache_traffic(2, 30) == 30 * 8 + 2 * 200
    assert shape.pool_share(20) == 20 + 300 / 8


def test_memory_is_divided_between_the_pools_as_sglangs_flags_say():
    sliding = replace(TINY, num_layers=3, sliding_layers=2, sliding_window=5)
    assert sliding.pools(SLOW, sliding_share=0.5) == Pools(85, 42)
    assert TINY.pools(SLOW).around(10) == Pools(10)
    assert Pools(85, 42, 20).around(17) == Pools(17, 8, 4)


def test_states_take_their_share_of_the_memory_and_one_is_for_padding():
    shape = replace(TINY, num_layers=4, recurrent_layers=3, state_bytes=10, num_states=5)
    room = shape.pool_tokens(SLOW) * 8
    pools = shape.pools(SLOW, state_ratio=0.5)
    assert pools.states == int(room / 3 / 10) - 1
    assert pools.tokens == int((room - 10 * (pools.states + 1)) / 8)
    assert shape.even_state_ratio(25) == 5 * 10 / (25 * 8)
    even = shape.pools(SLOW, state_ratio=shape.even_state_ratio(25))
    assert even.states / 5 == pytest.approx(even.tokens / 25, abs=0.5)


def test_the_pool_that_is_full_first_says_how_many_requests_there_is_room_for():
    assert TINY.requests_in(Pools(100), 30) == 3
    assert TINY.requests_in(Pools(20), 30) == 1
    sliding = replace(TINY, sliding_layers=1, sliding_window=5)
    assert sliding.requests_in(Pools(1000, 2 * (5 + SLIDE_INTERVAL)), 10) == 2
    recurrent = replace(TINY, recurrent_layers=1, num_states=5)
    assert recurrent.requests_in(Pools(1000, states=24), 10) == 4


def test_a_latent_is_stored_once_and_is_key_and_value():
    shape = replace(TINY, num_layers=2, num_heads=3, latent_widths=(6, 4))
    assert shape.kv_token_bytes == 2 * 2 * 6
    assert shape.attention_flops(10) == 2 * 3 * 2 * (6 + 4) * 10


def test_experts_are_read_by_the_tokens_that_choose_them_and_kept_whole():
    shape = replace(TINY, num_parameters=1000, experts=Experts(4, 1, 800, 0.5))
    assert shape.weight_bytes == 2 * 200 + 400
    assert (shape.weight_traffic(1), shape.weight_traffic(2)) == (320 + 100, 320 + 400 * (1 - 0.75**2))
    assert shape.weight_traffic(1000) == pytest.approx(320 + 400)
    assert shape.token_flops == 2 * (200 - 40 + 200)


def test_gpus_share_weights_heads_and_states_but_each_holds_all_latents():
    whole = replace(TINY, num_heads=4, num_kv_heads=2, state_bytes=100)
    half = replace(whole, tp_size=2)
    for name in ("weight_bytes", "read_bytes", "token_flops", "kv_token_bytes", "fixed_bytes"):
        assert getattr(half, name) == getattr(whole, name) / 2, name
    assert half.attention_flops(10) == whole.attention_flops(10) / 2
    assert replace(whole, tp_size=4).kv_token_bytes == half.kv_token_bytes  # a KV head is not split
    latent = replace(whole, latent_widths=(6, 4))
    assert replace(latent, tp_size=2).kv_token_bytes == latent.kv_token_bytes


def test_a_prefill_reads_the_experts_writes_the_windows_and_attends_within_them():
    shape = replace(TINY, num_layers=2, sliding_layers=1, sliding_window=3, experts=Experts(2, 1, 80, 2))
    flops = 10 * 2 * (200 - 80 - 40) + 2 * 80 + 8 * 55 + 8 * 30
    assert prefill_seconds(SLOW, shape, 10, 55, batch=2) == pytest.approx(flops / 1000)
    num_bytes = (320 - 160) + 80 + 16
    assert prefill_seconds(SLOW, shape, 1, 1) == pytest.approx(num_bytes / 500)
