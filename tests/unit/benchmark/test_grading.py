"""The numbers of an accuracy cell, from replies written out by hand."""

import pytest

from benchmark.harness.grading import (
    Reply,
    ends_in_loop,
    majority_is_right,
    mean_held,
    pass_at,
    summarize,
)


def reply(is_right: bool, answer: str = "a", length: int = 10, **changes) -> Reply:
    values = {"is_truncated": False, "is_loop": False, "mean_kv": 5.0, "peak_kv": 8} | changes
    return Reply(is_right=is_right, answer=answer, output_len=length, **values)


def test_what_could_not_be_judged_is_counted_and_not_right():
    numbers = summarize([[reply(True)], [reply(False, is_judged=False)]], full_len=None)
    assert (numbers["correct"], numbers["num_not_judged"]) == (1, 1)


def test_a_greedy_cell():
    replies = [
        [reply(True, mean_kv=4.0)],
        [reply(False, length=20, is_truncated=True, is_loop=True, peak_kv=12)],
        [reply(True)],
        [reply(True)],
    ]
    assert summarize(replies, full_len=10.0) == {
        "n": 4,
        "correct": 3,
        "wilson_low": 0.3006,
        "wilson_high": 0.9544,
        "mean_kv_tokens": 4.8,
        "peak_kv_tokens": 12,
        "mean_output_len": 12.5,
        "length_inflation": 1.25,
        "loop_rate": 0.25,
        "truncation_rate": 0.25,
        "num_not_judged": 0,
        "tokens_per_solved": 16.7,
    }


def test_the_full_cache_is_its_own_measure():
    assert summarize([[reply(True, length=30)]], None)["length_inflation"] == 1


def test_nothing_solved_costs_no_number_of_tokens():
    assert summarize([[reply(False)]], 10.0)["tokens_per_solved"] is None


def test_sampling_counts_the_first_sample_and_reports_the_others():
    one = [reply(True, "x"), reply(False, "y"), reply(False, "y"), reply(False, "z"), reply(False, "w")]
    two = [reply(False, "y"), reply(True, "x"), reply(True, "x"), reply(False, "y"), reply(True, "x")]
    numbers = summarize([one, two], 10.0)
    assert numbers["correct"] == 1
    assert numbers["pass_at_1"] == pytest.approx(0.4)
    assert numbers["pass_at_5"] == 1
    assert numbers["maj_at_5"] == 0.5


def test_pass_at_k_is_the_chance_that_a_draw_holds_a_right_one():
    assert pass_at(1, 4, 1) == 0.25
    assert pass_at(2, 4, 1) == 0.5
    assert pass_at(2, 4, 3) == 1
    assert pass_at(2, 4, 0) == 0


def test_a_tied_vote_goes_to_the_answer_given_first():
    assert majority_is_right([reply(True, "x"), reply(False, "y")])
    assert not majority_is_right([reply(False, "y"), reply(True, "x")])


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([1, 2, 3, 4, 5, 6], False),
        ([9, 7, 7, 7], True),
        ([9, 7, 7], False),
        ([1, 2, 1, 2, 1, 2], True),
        ([1, 2, 1, 2, 1, 2, 3], False),
        ([*range(128)] * 3, True),
        ([*range(129)] * 3, False),
        ([], False),
    ],
)
def test_a_loop_is_a_block_written_three_times_at_the_end(tokens, loops):
    assert ends_in_loop(tokens) == loops


def held_by_hand(question: int, output: int, compactions: dict[int, int]) -> float:
    """Walk through the forwards: each holds a token more than the last; a compaction comes between."""
    held, total = question, 0
    for seq_len in range(question, question + output):
        total += held
        held += 1 - compactions.get(seq_len, 0)
    return total / output


@pytest.mark.parametrize(
    ("question", "output", "compactions"),
    [(4, 1, {}), (4, 10, {}), (4, 10, {8: 3}), (4, 20, {8: 3, 12: 4, 23: 5}), (10, 5, {14: 2})],
)
def test_mean_held_counts_every_forward(question, output, compactions):
    found = mean_held(question, output, [*compactions], [*compactions.values()])
    assert found == pytest.approx(held_by_hand(question, output, compactions))
