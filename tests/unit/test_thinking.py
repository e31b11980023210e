"""Which generated tokens think, from token ids alone."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_dynts.reference import is_thinking
from sgl_dynts.thinking import ThinkingTracker, ThinkMarkers

ONE = ThinkMarkers((1,), (2,))
MANY = ThinkMarkers((1, 5), (2, 3, 2))
TOKENS = st.lists(st.integers(1, 4), max_size=60)
MARKER = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
MARKERS = st.tuples(MARKER, MARKER).filter(lambda pair: not starts_alike(*pair))


def starts_alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether one marker begins with the other, which no tokenizer's markers do."""
    return all(a == b for a, b in zip(one, other, strict=False))


def spans_of(tokens: list[int], markers: ThinkMarkers = ONE, thinking: bool = True) -> list:
    tracker = ThinkingTracker(markers, thinking)
    tracker.advance(tokens)
    return tracker.answer_spans


@pytest.mark.parametrize(
    ("prompt", "thinks"),
    [
        ([], True),
        ([9, 9], True),
        ([9, 1], True),
        ([9, 1, 2], False),
        ([2], False),
        ([1, 2, 9, 1, 9], True),
        ([2, 9, 1, 9, 2, 9], False),
    ],
)
def test_generation_thinks_unless_the_prompts_last_marker_closes(prompt, thinks):
    assert ONE.starts_thinking(prompt) is thinks


def test_part_of_a_closing_marker_in_the_prompt_closes_nothing():
    assert MANY.starts_thinking([9, 2, 3, 9, 2])
    assert not MANY.starts_thinking([9, 2, 3, 2])


@pytest.mark.parametrize(
    ("tokens", "spans"),
    [
        ([], []),
        ([9, 9, 9], []),
        ([9, 2], [(1, 2)]),
        ([9, 2, 7, 7], [(1, 4)]),
        ([2, 7, 1, 9, 2, 7], [(0, 3), (4, 6)]),
        ([1, 1, 9, 2, 2, 2], [(3, 6)]),
    ],
)
def test_answer_starts_with_the_closing_marker_and_ends_with_a_new_opening_one(tokens, spans):
    assert spans_of(tokens) == spans


def test_a_prompt_that_closed_thinking_makes_everything_answer():
    assert spans_of([9, 9, 9], thinking=False) == [(0, 3)]


def test_a_marker_of_several_tokens_counts_once_it_is_complete():
    assert spans_of([9, 2, 3, 9, 2, 3, 2, 7], MANY) == [(6, 8)]


def test_a_closing_marker_that_overlaps_its_own_start_is_found():
    assert spans_of([2, 3, 2, 3, 2], MANY) == [(2, 5)]


def test_a_token_that_ends_one_marker_never_begins_the_next():
    assert spans_of([1, 2, 3, 9], ThinkMarkers(opening=(2, 3), closing=(1, 2))) == [(1, 4)]


def test_a_second_thinking_is_thinking_again():
    tokens = [9, 2, 3, 2, 7, 1, 5, 9, 9, 2, 3, 2, 7]
    assert spans_of(tokens, MANY) == [(3, 7), (11, 13)]


@given(TOKENS, TOKENS, MARKERS)
def test_the_tracker_agrees_with_rescanning_everything(prompt, output, markers):
    pair = ThinkMarkers(*markers)
    tracker = ThinkingTracker(pair, pair.starts_thinking(prompt))
    tracker.advance(output)
    thinking = [True] * len(output)
    for start, end in tracker.answer_spans:
        thinking[start:end] = [False] * (end - start)
    assert thinking == is_thinking(prompt, output, pair)
    assert tracker.answer_len == thinking.count(False)
    assert tracker.num_seen == len(output)


@given(TOKENS, st.lists(st.integers(1, 7), max_size=12), MARKERS)
def test_it_does_not_matter_in_which_pieces_tokens_arrive(output, cuts, markers):
    pieces, whole = (ThinkingTracker(ThinkMarkers(*markers), True) for _ in range(2))
    whole.advance(output)
    for step in [*cuts, len(output)]:
        pieces.advance(output[pieces.num_seen : pieces.num_seen + step])
    assert pieces == whole


@given(st.lists(st.integers(0, 700), max_size=3), st.lists(st.integers(0, 700), max_size=3), MARKERS)
def test_an_array_of_tokens_is_read_like_a_list(closings, openings, markers):
    markers, output = ThinkMarkers(*markers), [9] * 700
    for place in closings:
        output[place : place + len(markers.closing)] = markers.closing
    for place in openings:
        output[place : place + len(markers.opening)] = markers.opening
    by_list, by_array = ThinkingTracker(markers, True), ThinkingTracker(markers, True)
    by_list.advance(output)
    by_array.advance(array("q", output))
    assert by_array == by_list


def test_a_token_whose_bytes_lie_across_two_others_is_not_found_there():
    output = array("q", [1 << 56, 1, 256, 5])  # 256 begins with a byte that is 0, as do the others
    tracker = ThinkingTracker(ThinkMarkers((7,), (256,)), True)
    tracker.advance(output)
    assert (tracker.answer_spans, tracker.thinking) == ([(2, 4)], False)


@given(TOKENS, MARKERS)
def test_a_tokens_kind_never_changes_once_it_is_seen(output, markers):
    pair = ThinkMarkers(*markers)
    seen: list[bool] = []
    for end in range(1, len(output) + 1):
        flags = is_thinking([], output[:end], pair)
        assert flags[:-1] == seen
        seen = flags


@pytest.mark.parametrize(
    ("opening", "closing"), [((1,), (1,)), ((1, 2), (1, 2, 3)), ((), (4,)), ((4, 5), (4,))]
)
def test_markers_that_cannot_be_told_apart_are_refused(opening, closing):
    with pytest.raises(ValueError, match="one begins with the other; name distinct ones with --dynts"):
        ThinkMarkers(opening, closing)


OPEN, CLOSE, TURN = 7, 8, 9
CHAT = ThinkMarkers((OPEN,), (CLOSE,), control=frozenset({TURN}))


@pytest.mark.parametrize(
    ("prompt", "question_len"),
    [
        ([1, 2, 3], 3),
        ([1, 2, OPEN], 3),
        ([1, 2, OPEN, 4, 5], 3),
        ([1, OPEN, 2, CLOSE, 3, TURN, OPEN, 4, 5], 7),
        ([1, OPEN, 2, CLOSE, 3], 5),
        ([1, OPEN, 2, CLOSE], 4),
        ([1, OPEN, 2, TURN, 3], 5),  # a user's words about the marker
        ([1, OPEN, 2, TURN, 3, OPEN, 4], 6),
        ([], 0),
    ],
    ids=str,
)
def test_a_question_ends_where_thinking_is_left_open(prompt, question_len):
    assert CHAT.question_len(prompt) == question_len


def test_a_question_ends_behind_the_last_token_of_a_marker_of_several():
    assert ThinkMarkers((5, 6), (8,)).question_len([1, 5, 6, 5, 4]) == 3


def test_without_markers_all_that_is_generated_is_thinking():
    markers = ThinkMarkers((), ())
    prompt = [1, 2, 3]
    assert markers.starts_thinking(prompt)
    assert markers.question_len(prompt) == 3
    tracker = ThinkingTracker(markers, thinking=True)
    tracker.advance([5, 6])
    tracker.advance([7])
    assert (tracker.num_seen, tracker.answer_len, tracker.answer_spans) == (3, 0, [])
