"""When a compaction is due and what it leaves, on lengths alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_dynts.config import DynTSConfig
from sgl_dynts.reference import is_thinking
from sgl_dynts.thinking import ThinkingTracker, ThinkMarkers
from sgl_dynts.window import Cut, RequestWindow
from tests.unit.test_config import configs

MARKERS = ThinkMarkers((1,), (2,))
CONFIG = DynTSConfig(budget=20, local_window=10, keep_ratio=0.4)  # k 4, T 14, period 6


def window_of(config: DynTSConfig = CONFIG, question_len: int = 2) -> RequestWindow:
    return RequestWindow(config, question_len, ThinkingTracker(MARKERS, True))


def thoughts(count: int) -> list[int]:
    return [9] * count


def due(window: RequestWindow, window_len: int, output: list[int]) -> Cut:
    cut = window.cut(window_len, output)
    assert cut is not None
    return cut


def test_nothing_is_due_below_the_budget():
    assert window_of().cut(19, thoughts(17)) is None


def test_at_the_budget_the_window_shrinks_to_what_the_paper_retains():
    cut = due(window_of(), 20, thoughts(18))
    assert cut == Cut(first=2, num_candidates=8, num_kept=2, local_window=10)
    assert (cut.window_len, cut.num_dropped) == (20, 6)


def test_a_period_lies_between_two_compactions():
    window = window_of()
    window.record(due(window, 20, thoughts(18)))
    assert window.cut(19, thoughts(23)) is None
    assert window.cut(20, thoughts(24)) == Cut(2, 8, 2, 10, num_survivors=2)


def test_a_window_that_overshot_its_budget_comes_down_all_the_same():
    assert due(window_of(), 27, thoughts(25)).num_dropped == 13


def test_seq_len_is_window_len_and_what_was_dropped():
    window = window_of()
    window.record(due(window, 20, thoughts(18)))
    assert (window.dropped, window.seq_len(14)) == (6, 20)


def test_a_question_longer_than_the_budget_is_kept_whole():
    window = window_of(question_len=50)
    assert window.budget == 50 + 1 + 10 + 6
    assert window.cut(66, thoughts(16)) is None
    assert window.cut(67, thoughts(17)) == Cut(first=50, num_candidates=7, num_kept=1, local_window=10)


def test_no_thinking_token_may_be_selected_where_the_operator_says_so():
    window = window_of(DynTSConfig(20, 10, 0.4, min_selection=0), question_len=4)
    assert window.cut(20, thoughts(16)) == Cut(first=4, num_candidates=6, num_kept=0, local_window=10)


def test_answer_tokens_come_on_top_of_the_budget():
    window = window_of()
    output = [9, 2, 7, 7, 1, *thoughts(15)]  # four answer tokens
    assert window.cut(22, output[:20]) is None
    assert window.due_len == 24
    output += thoughts(2)
    assert window.cut(24, output) == Cut(2, 12, 6, 10, answer_spans=((3, 7),))


def test_answer_tokens_in_the_local_window_take_no_place_in_the_selection():
    window = window_of()
    output = [*thoughts(18), 2, 7, 7]
    assert window.cut(23, output) == Cut(2, 11, 2, 10, answer_spans=((20, 22),))


def test_the_newest_token_is_marked_a_cut_later_than_its_score_is_written():
    window = window_of()
    output = [*thoughts(18), 2, 7, 7]
    window.record(due(window, 23, output))
    output += [1, *thoughts(9)]
    newest_then, window_then = 2 + 20, 2 + len(output) - window.dropped
    assert due(window, window_then, output).answer_spans[0][0] == newest_then - window.dropped


def test_a_marked_answer_token_is_not_marked_twice():
    window = window_of()
    output = [9, 2, 7, 7, 1, *thoughts(17)]
    window.record(due(window, 24, output))
    output += [*thoughts(5), 2, 7, 1]
    assert window.seq_len(26) == 2 + len(output)
    assert window.cut(26, output) is None
    assert due(window, 27, [*output, 9]).answer_spans == ((23, 26),)


def test_an_answer_span_that_grew_is_marked_from_where_it_was_left():
    window = window_of()
    output = [*thoughts(18), 2, 7]
    window.record(due(window, 22, output))
    assert window.dropped == 8
    output += [7, 1, *thoughts(8)]
    assert due(window, 24, output).answer_spans == ((13, 16),)


def test_tokens_beyond_the_window_are_not_looked_at():
    window = window_of()
    assert window.cut(20, [*thoughts(18), 2, 2, 2]) == Cut(2, 8, 2, 10)
    assert window.tracker.num_seen == 18


def test_a_finished_thought_never_triggers_again():
    window = window_of()
    output = [*thoughts(5), 2, *[7] * 500]
    assert all(window.cut(2 + n, output[:n]) is None for n in range(len(output) + 1))


def test_after_a_restart_the_whole_sequence_is_cut_at_once():
    window = window_of()
    output = [9, 2, 7, 7, 1, *thoughts(17)]
    window.record(due(window, 24, output))
    window.restart()
    assert window.dropped == 0
    output += thoughts(6)
    assert window.cut(30, output) == Cut(2, 18, 6, 10, answer_spans=((3, 7),))


@pytest.mark.parametrize("thinking", [True, False])
def test_a_new_window_is_due_at_its_budget(thinking):
    window = RequestWindow(CONFIG, 2, ThinkingTracker(MARKERS, thinking))
    assert (window.due_len, window.budget) == (20, 20)


@given(configs(), st.integers(0, 80), st.lists(st.sampled_from([1, 2, 8, 9]), max_size=400))
def test_question_and_thinking_never_exceed_the_budget_and_all_lengths_add_up(config, q, output):
    window = window_of(config, q)
    held = q
    for n in range(1, len(output) + 1):
        held += 1
        cut = window.cut(held, output[:n])
        assert window.seq_len(held) == q + n
        if cut is None:
            continue
        assert cut.window_len == held
        assert 0 <= cut.num_kept <= cut.num_candidates
        assert held - window.tracker.answer_len == window.budget
        recent = is_thinking([], output[:n], MARKERS)[-config.local_window :]
        assert cut.num_dropped == config.period + recent.count(False)
        window.record(cut)
        held -= cut.num_dropped


def test_survivors_of_the_last_compaction_stand_first_among_the_candidates():
    window = window_of()
    window.record(due(window, 20, thoughts(18)))
    assert due(window, 20, thoughts(24)).num_survivors == 2
    window.undo()
    assert due(window, 20, thoughts(24)).num_survivors == 0


def test_a_restarted_request_has_no_survivors():
    window = window_of()
    window.record(due(window, 20, thoughts(18)))
    window.restart()
    assert due(window, 24, thoughts(22)).num_survivors == 0
