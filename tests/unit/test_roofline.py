"""The roofline against values worked out by hand."""

from dataclasses import replace

import pytest

from sgl_dynts.config import PAPER_CONFIGS
from sgl_dynts.roofline import (
    COMPACTION_LAUNCH_SECONDS,
    H200,
    HEAD_CHOICE_LAUNCH_SECONDS,
    HEAD_JUDGEMENT_LAUNCH_SECONDS,
    HEAD_MOVES_LAUNCH_SECONDS,
    LLAMA_8B,
    QWEN_7B,
    Gpu,
    ModelShape,
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
