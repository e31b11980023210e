"""Which token ids open and close thinking."""

import re

import pytest
from sglang.srt.utils.hf_transformers_utils import get_tokenizer

from benchmark.harness.tiny_models import END_THINK, THINK
from sgl_dynts.thinking import ThinkMarkers
from sglang_dynts.boot.markers import resolve_markers, separator_ids
from tests.e2e.models import SEPARATORS

DYNTS = ("--attention-backend", "dynts")
USUAL = ThinkMarkers((THINK,), (END_THINK,))


@pytest.fixture(scope="module")
def tokenizer(model):
    return get_tokenizer(str(model))


def test_the_usual_markers_are_the_default(serve, tokenizer):
    serve(*DYNTS)
    assert resolve_markers(tokenizer) == USUAL


@pytest.mark.parametrize("parser", ["qwen3", "deepseek-r1", "qwen3-thinking", "kimi_k2"])
def test_the_reasoning_parser_names_the_markers(serve, tokenizer, parser):
    serve(*DYNTS, "--reasoning-parser", parser)
    assert resolve_markers(tokenizer) == USUAL


def test_flags_win_and_may_name_several_tokens(serve, tokenizer):
    serve(
        *DYNTS,
        *("--reasoning-parser", "qwen3"),
        *("--dynts-think-start", "w10 w11", "--dynts-think-end", "w12 w13 w14"),
    )
    assert resolve_markers(tokenizer) == ThinkMarkers((10, 11), (12, 13, 14))


def test_one_flag_leaves_the_other_marker_alone(serve, tokenizer):
    serve(*DYNTS, "--dynts-think-end", "w12")
    assert resolve_markers(tokenizer) == ThinkMarkers((THINK,), (12,))


@pytest.mark.parametrize("flag", ["--dynts-think-start", "--dynts-think-end"])
def test_a_marker_outside_the_vocabulary_is_refused(serve, tokenizer, flag):
    serve(*DYNTS, flag, "[THINKING]")
    with refuses(flag, "[THINKING]"):
        resolve_markers(tokenizer)


def test_a_parsers_marker_outside_the_vocabulary_is_refused(serve, tokenizer):
    serve(*DYNTS, "--reasoning-parser", "kimi")
    with refuses("--dynts-think-start", "◁think▷"):
        resolve_markers(tokenizer)


def test_a_parsers_closing_marker_outside_the_vocabulary_is_refused(serve, tokenizer):
    serve(*DYNTS, "--reasoning-parser", "kimi", "--dynts-think-start", "<think>")
    with refuses("--dynts-think-end", "◁/think▷"):
        resolve_markers(tokenizer)


def refuses(flag: str, text: str):
    message = (
        f"{flag}: {text!r} is not in the tokenizer's vocabulary, so thinking cannot be recognised; "
        f"name the model's own marker with {flag}"
    )
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_separators_are_punctuation_of_the_vocabulary(tokenizer):
    assert separator_ids(tokenizer) == set(SEPARATORS)
