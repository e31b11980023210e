"""Which token ids open and close thinking."""

import re
from typing import Any

import pytest
from sglang.srt.sampling.sampling_params import (
    REQUEST_REASONING_END_TOKEN_IDS_KEY,
    SamplingParams,
    set_request_reasoning_end_token_ids,
)
from sglang.srt.utils.hf_transformers_utils import get_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmark.harness.tiny_models import END_THINK, SPECIAL, THINK, word_tokenizer
from sgl_dynts.thinking import ThinkingTracker, ThinkMarkers
from sglang_dynts.boot.markers import markers_of_request, resolve_markers, separator_ids
from tests.e2e.models import SEPARATORS
from tests.unit.test_marker_spellings import byte_level

DYNTS = ("--attention-backend", "dynts")
BOS, EOS = 1, 2


def marked(opening: tuple[int, ...], closing: tuple[int, ...]) -> ThinkMarkers:
    """Markers of the test model, whose other special tokens stand between turns."""
    return ThinkMarkers(opening, closing, control=frozenset({BOS, EOS}))


USUAL = marked((THINK,), (END_THINK,))


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
    assert resolve_markers(tokenizer) == marked((10, 11), (12, 13, 14))


def test_one_flag_leaves_the_other_marker_alone(serve, tokenizer):
    serve(*DYNTS, "--dynts-think-end", "w12")
    assert resolve_markers(tokenizer) == marked((THINK,), (12,))


def test_turns_of_a_chat_are_told_by_special_tokens_and_by_what_the_template_writes(serve):
    serve(*DYNTS)
    tokenizer = words("<think> </think> <|user|> <|assistant|> <table> <eos> a b")
    tokenizer.add_tokens(["<|user|>", "<|assistant|>", "<table>", "<think>", "</think>"])
    tokenizer.add_special_tokens({"eos_token": "<eos>"})
    tokenizer.chat_template = "<|user|> {{ messages }} <|assistant|> <think>"
    markers = resolve_markers(tokenizer)
    assert markers.control == set(tokenizer.encode("<|user|> <|assistant|> <eos>"))
    for prompt, question in {
        "<|user|> a <|assistant|> <think> a <table> b": "<|user|> a <|assistant|> <think>",
        "<|user|> a <think> b <|assistant|> a": "<|user|> a <think> b <|assistant|> a",
    }.items():
        assert markers.question_len(tokenizer.encode(prompt)) == len(tokenizer.encode(question))


def read(markers: ThinkMarkers, tokenizer, text: str) -> list[tuple[int, int]]:
    tracker = ThinkingTracker(markers, True)
    tracker.advance(tokenizer.encode(text))
    return tracker.answer_spans


def words(text: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(text.split())}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    ("parser", "call"), [("qwen3", "<tool_call>"), ("kimi_k2", "<|tool_calls_section_begin|>")]
)
def test_a_call_of_a_tool_ends_thinking_as_the_reasoning_parser_says(serve, parser, call):
    serve(*DYNTS, "--reasoning-parser", parser)
    tokenizer = words(f"<think> </think> {call} a b")
    markers = resolve_markers(tokenizer)
    assert (markers.opening, markers.closing) == ((0,), (1,))
    assert read(markers, tokenizer, f"a b {call} a b") == [(2, 5)]
    assert read(markers, tokenizer, "a b </think> a") == [(2, 4)]
    assert markers.starts_thinking(tokenizer.encode(f"<think> a </think> {call} b <think>"))
    assert not markers.starts_thinking(tokenizer.encode("<think> a </think>"))


HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>")


@pytest.fixture
def harmony() -> PreTrainedTokenizerFast:
    """A tokenizer that splits as that of gpt-oss, and a template that names its channels."""
    tokenizer = words("system user assistant analysis commentary final a b c")
    tokenizer.add_tokens(list(HARMONY), special_tokens=True)
    tokenizer.chat_template = "<|start|>assistant<|channel|>analysis<|message|>"
    return tokenizer


@pytest.mark.parametrize("flags", [(), ("--reasoning-parser", "gpt-oss")], ids=["found", "named"])
def test_the_channels_of_gpt_oss_are_known_without_a_flag(serve, harmony, flags):
    serve(*DYNTS, *flags)
    markers = resolve_markers(harmony)
    assert harmony.decode(markers.opening) == "<|channel|> analysis <|message|>"
    assert harmony.decode(markers.closing) == "<|end|>"
    assert markers.control >= set(harmony.convert_tokens_to_ids(["<|start|>", "<|return|>", "<|call|>"]))
    turn = "<|start|>system<|message|>a<|end|><|start|>user<|message|>a<|end|><|start|>assistant"
    prompt = harmony.encode(turn)
    assert not markers.starts_thinking(prompt)
    assert markers.question_len(prompt) == len(prompt)


def test_an_answer_of_gpt_oss_thinks_in_several_parts(serve, harmony):
    """What comes between them, a call of a tool and its result among it, is no thinking."""
    serve(*DYNTS)
    tracker = ThinkingTracker(resolve_markers(harmony), False)
    parts = [
        ("<|channel|>analysis<|message|>", False),
        ("a b", True),
        ("<|end|><|start|>assistant<|channel|>commentary<|message|>c<|call|>", False),
        ("<|start|>assistant<|channel|>analysis<|message|>", False),
        ("a b c", True),
        ("<|end|><|start|>assistant<|channel|>final<|message|>c<|return|>", False),
    ]
    expected = [thinks for text, thinks in parts for _ in harmony.encode(text)]
    tracker.advance(harmony.encode("".join(text for text, _ in parts)))
    answers = {place for span in tracker.answer_spans for place in range(*span)}
    assert [place not in answers for place in range(len(expected))] == expected


def test_an_answer_of_gpt_oss_that_does_not_think_is_an_answer(serve, harmony):
    """A prompt without a turn leaves open whether thinking comes; the channel tells."""
    serve(*DYNTS)
    markers = resolve_markers(harmony)
    assert markers.starts_thinking(harmony.encode("a b"))
    for channel in ("final", "commentary"):
        assert read(markers, harmony, f"<|channel|>{channel}<|message|>a b") == [(1, 5)]


def test_a_model_with_both_kinds_of_markers_thinks_between_the_usual_ones(serve, harmony):
    serve(*DYNTS)
    harmony.add_tokens(["<think>", "</think>"])
    markers = resolve_markers(harmony)
    assert harmony.decode(markers.opening) == "<think>"


HORIZON = " ".join(
    f"<ifm|{effort}> </ifm|{effort}>" for effort in ("think", "think_fast", "think_faster")
)
HORIZON += " <ifm|tool_calls> a b"


def test_a_reasoning_effort_that_a_request_chose_ends_its_thinking(serve):
    serve(*DYNTS, "--reasoning-parser", "k2_horizon")
    tokenizer = words(HORIZON)
    server = resolve_markers(tokenizer)
    faster = tokenizer.encode("</ifm|think_faster>")
    params: dict[str, Any] = {}
    set_request_reasoning_end_token_ids(params, faster)
    chosen = markers_of_request(SamplingParams(**params), server)
    assert read(chosen, tokenizer, "a </ifm|think> a </ifm|think_faster> b") == [(3, 5)]
    assert chosen.starts_thinking(
        tokenizer.encode("<ifm|think_faster> a </ifm|think_faster> a <ifm|think_faster>")
    )


def test_every_effort_s_markers_are_known_where_a_request_names_none(serve):
    serve(*DYNTS, "--reasoning-parser", "k2_horizon")
    tokenizer = words(HORIZON)
    server = resolve_markers(tokenizer)
    assert markers_of_request(SamplingParams(), server) is server
    assert markers_of_request(SamplingParams(custom_params=None), server) is server
    for effort in ("think", "think_fast", "think_faster"):
        assert read(server, tokenizer, f"a </ifm|{effort}> b") == [(1, 3)]
        assert server.starts_thinking(tokenizer.encode(f"<ifm|think> a </ifm|think> <ifm|{effort}>"))
        assert not server.starts_thinking(tokenizer.encode(f"<ifm|{effort}> a </ifm|{effort}>"))
    assert read(server, tokenizer, "a <ifm|tool_calls> b") == [(1, 3)]


def test_a_request_cannot_name_other_tokens_to_end_thinking(serve, tokenizer):
    serve(*DYNTS)
    server = resolve_markers(tokenizer)
    params = SamplingParams(custom_params={REQUEST_REASONING_END_TOKEN_IDS_KEY: [12]})
    assert markers_of_request(params, server) is server


def test_a_flag_s_marker_is_found_however_it_is_merged(serve):
    serve(*DYNTS, "--dynts-think-end", "</think>")
    merging = byte_level()
    ids = merging.encode("I see\n</think>\n\n42", add_special_tokens=False)
    tracker = ThinkingTracker(resolve_markers(merging), True)
    tracker.advance(ids)
    assert merging.decode(list(ids[tracker.answer_spans[0][0] :])) == ">\n\n42"


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


def test_a_model_that_nothing_says_marks_its_thinking_has_no_markers(serve):
    serve(*DYNTS)
    plain = word_tokenizer(64, special=SPECIAL[:THINK])
    assert resolve_markers(plain) == ThinkMarkers((), ())
    plain.chat_template = "{{ messages }}<think>"
    with pytest.raises(ValueError, match="'<think>' is not in the tokenizer's vocabulary"):
        resolve_markers(plain)
