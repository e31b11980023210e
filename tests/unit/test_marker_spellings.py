"""Markers that a tokenizer merges with what stands around them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sgl_dynts.markers import Marker, find_marker
from sgl_dynts.thinking import ThinkingTracker, ThinkMarkers
from sgl_dynts.training.trace_parts import Parts, find_parts

CLOSE = "</think>"
GPT4_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
WORD = [("t", "h"), ("th", "i"), ("thi", "n"), ("thin", "k")]
BYTE_MERGES = [("<", "/"), *WORD, ("Ċ", "Ċ"), (">", "ĊĊ"), (">", "Ċ"), (".", "</")]


def byte_level(merges=BYTE_MERGES) -> PreTrainedTokenizerFast:
    """Bytes and merges; line breaks go with the punctuation before them, as GPT-4's splitting has it."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(one + other for one, other in merges)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    split = pre_tokenizers.Split(Regex(GPT4_SPLIT), "isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_pieces() -> PreTrainedTokenizerFast:
    merges = [*WORD, ("<", "/"), ("▁", "</"), (">", "N")]
    letters = dict.fromkeys("▁</>thinkseNx42.")
    pieces = [*letters, *(one + other for one, other in merges)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def encode(tokenizer, text):
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def markers_of(tokenizer) -> ThinkMarkers:
    opening, closing = encode(tokenizer, "<think>"), encode(tokenizer, CLOSE)
    openers, closers = find_marker(tokenizer, "<think>", opening), find_marker(tokenizer, CLOSE, closing)
    return ThinkMarkers(opening, closing, (openers,), (closers,))


def answer_of(tokenizer, text):
    """Return the text from the first answer token on, None where thinking never closes."""
    ids = encode(tokenizer, text)
    tracker = ThinkingTracker(markers_of(tokenizer), True)
    tracker.advance(ids)
    return tokenizer.decode(list(ids[tracker.answer_spans[0][0] :])) if tracker.answer_spans else None


@pytest.fixture(scope="module")
def merging():
    return byte_level()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("I see</think>42", ">42"),
        ("I see\n</think>\n\nIt is 42.", ">\n\nIt is 42."),
        ("I see.</think>\nIt is 42.", ">\nIt is 42."),
        ("a </</think>>", ">>"),
        ("I see</think", None),
        ("I see</thin k>", None),
        ("</ think>", None),
    ],
)
def test_a_marker_is_found_however_it_is_merged(merging, text, answer):
    assert answer_of(merging, text) == answer


def test_its_own_last_token_never_comes_where_it_is_merged(merging):
    alone, merged = encode(merging, CLOSE), encode(merging, f"{CLOSE}\n\n")
    assert alone[-1] not in merged


def test_pieces_of_sentencepiece_are_read_too():
    tokenizer = sentence_pieces()
    assert answer_of(tokenizer, "see </think>Nx 42") == ">Nx 42"
    assert answer_of(tokenizer, "see</think>42") == ">42"


def test_a_prompt_is_read_as_it_is_merged(merging):
    markers = markers_of(merging)
    for prompt, thinks in (
        ("Hi", True),
        ("Hi<think>\n", True),
        ("Hi<think>\n\n</think>\n\n", False),
        ("<think>a</think>\n\nb<think>\n", True),
    ):
        assert markers.starts_thinking(encode(merging, prompt)) is thinks


def test_parts_of_a_trace_leave_out_every_token_of_the_marker(merging):
    output = encode(merging, "<think>\nI see.</think>\n\n42")
    parts = find_parts((), output, markers_of(merging))
    whole = [merging.decode(list(output[slice(*part)])) for part in (parts.thinking, parts.answer)]
    assert whole == ["I see", "42"]
    assert isinstance(parts, Parts)


def test_a_token_that_was_added_never_merges():
    tokenizer = byte_level()
    tokenizer.add_tokens([CLOSE])
    ids = encode(tokenizer, CLOSE)
    assert find_marker(tokenizer, CLOSE, ids) == Marker.of_ids(ids)


def test_words_with_spaces_between_are_told_by_their_ids():
    tokenizer = Tokenizer(models.WordLevel({"w1": 0, "w10": 1, "w100": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    assert find_marker(words, "w10", [1]) == Marker.of_ids([1])


@given(st.lists(st.sampled_from(["</think>", "<", "/", "think", ">", "\n", "a", ".", " "]), max_size=12))
def test_thinking_closes_where_the_text_does(parts):
    text = "".join(parts)
    tokenizer = TOKENIZER
    ids = encode(tokenizer, text)
    tracker = ThinkingTracker(MARKERS, True)
    tracker.advance(ids)
    closes = CLOSE in text
    assert bool(tracker.answer_spans) is closes
    if closes:
        first = tracker.answer_spans[0][0]
        assert CLOSE not in tokenizer.decode(list(ids[:first]))
        assert CLOSE in tokenizer.decode(list(ids[: first + 1]))


TOKENIZER = byte_level()
MARKERS = markers_of(TOKENIZER)
