"""Many requests compacted at once, against the slow reference run on each by itself."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_dynts.compaction import apply_compaction, plan_compaction
from sgl_dynts.config import DynTSConfig
from sgl_dynts.reference import is_thinking, kept_positions
from sgl_dynts.score_pool import ScorePool
from sgl_dynts.thinking import ThinkingTracker, ThinkMarkers
from sgl_dynts.window import Cut, RequestWindow

MARKERS = ThinkMarkers((1,), (2, 3))
NUM_SLOTS = 1200
MAX_LEN = 300
NAN, INF = float("nan"), float("inf")
FINITE = {NAN: 0.0, INF: 3.4028234663852886e38, -INF: -3.4028234663852886e38}
SCORES = st.sampled_from([0.0, 1.0, 2.0, 3.0, INF, -INF])


@dataclass
class Request:
    """One request on the served side (``window``, a table row) and on the reference's (``held``)."""

    row: int
    prompt: list[int]
    window: RequestWindow
    held: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    window_len: int = 0


class Engine:
    """As much of a serving engine as a compaction needs: rows, slots, scores."""

    def __init__(self, requests: list[tuple[list[int], DynTSConfig]], seed: int) -> None:
        self.table = torch.zeros(len(requests) + 1, MAX_LEN, dtype=torch.int32)
        self.dropped = torch.zeros(len(requests) + 1, dtype=torch.int64)
        self.pool = ScorePool(NUM_SLOTS, "cpu")
        order = torch.randperm(NUM_SLOTS - 1, generator=torch.Generator().manual_seed(seed))
        self.free = (order + 1).tolist()
        self.requests = [
            self.admit(row, prompt, config) for row, (prompt, config) in enumerate(requests, 1)
        ]

    def admit(self, row: int, prompt: list[int], config: DynTSConfig) -> Request:
        tracker = ThinkingTracker(MARKERS, MARKERS.starts_thinking(prompt))
        request = Request(row, prompt, RequestWindow(config, len(prompt), tracker))
        for _ in prompt:
            self.append(request, 9.0)
        return request

    def append(self, request: Request, score: float) -> None:
        slot = self.free.pop()
        request.held.append(len(request.slots))
        request.slots.append(slot)
        request.scores.append(FINITE.get(score, score))
        self.table[request.row, request.window_len] = slot
        self.pool.write(torch.tensor([slot]), torch.tensor([score]))
        request.window_len += 1

    def compact(self) -> None:
        due = [(r, cut) for r in self.requests if (cut := r.window.cut(r.window_len, r.output))]
        plan = plan_compaction([r.row for r, _ in due], [cut for _, cut in due])
        if plan.cuts:
            freed = apply_compaction(plan, self.table, self.pool, self.dropped)
            assert len(freed) == plan.num_dropped
            self.free += freed.tolist()
        for request, cut in due:
            request.window.record(cut)
            request.window_len -= cut.num_dropped

    def restart(self, request: Request) -> None:
        """Retract the request and compute everything it has seen again."""
        self.free += self.table[request.row, : request.window_len].tolist()
        self.table[request.row] = 0
        self.dropped[request.row] = 0
        request.window.restart()
        scores, request.scores = request.scores, []
        request.held, request.slots, request.window_len = [], [], 0
        for score in scores:
            self.append(request, score)

    def check(self) -> None:
        for r in self.requests:
            flags = is_thinking(r.prompt, r.output, MARKERS)
            r.held = kept_positions(r.held, r.scores, flags, len(r.prompt), r.window.config)
            row = self.table[r.row]
            assert row[: r.window_len].tolist() == [r.slots[p] for p in r.held]
            assert not row[r.window_len :].any()
            assert self.dropped[r.row] == r.window.dropped
            assert r.window.seq_len(r.window_len) == len(r.prompt) + len(r.output)
        assert not self.table[0].any()
        assert len(set(self.free)) == len(self.free)
        assert len(self.free) == NUM_SLOTS - 1 - sum(r.window_len for r in self.requests)


@st.composite
def small_configs(draw) -> DynTSConfig:
    budget = draw(st.integers(6, 24))
    local = draw(st.integers(1, budget - 1))
    return DynTSConfig(budget, local, draw(st.sampled_from([0.1, 0.3, 0.5, 0.9])))


TOKENS = st.sampled_from([1, 2, 3, 5, 5, 5, 5, 5, 5, 5, 5, 6])
REQUESTS = st.tuples(st.lists(TOKENS, max_size=30), small_configs())
STEPS = st.lists(st.tuples(TOKENS, SCORES), min_size=30, max_size=70)


@settings(max_examples=60)
@given(st.data(), st.lists(REQUESTS, min_size=1, max_size=4), STEPS, st.integers(0, 99))
def test_served_windows_equal_the_reference_at_every_step(data, requests, steps, seed):
    engine = Engine(requests, seed)
    retract_at = data.draw(st.none() | st.integers(5, len(steps)))
    for number, (token, score) in enumerate(steps):
        for shift, request in enumerate(engine.requests):
            request.output.append(steps[(number + 7 * shift) % len(steps)][0] if shift else token)
            engine.append(request, score + shift if score == score else score)
        engine.compact()
        engine.check()
        if number == retract_at:
            engine.restart(engine.requests[0])
            engine.compact()
            engine.check()


def one(cut: Cut, row: list[int], scores: list[float]) -> tuple[list[int], list[int]]:
    """Compact one request; row and score lists start with the padding slot's."""
    table = torch.tensor([[0] * len(row), row], dtype=torch.int32)
    pool = ScorePool(len(scores), "cpu")
    pool.write(torch.arange(len(scores)), torch.tensor(scores))
    freed = apply_compaction(plan_compaction([1], [cut]), table, pool, torch.zeros(2).long())
    return table[1].tolist(), freed.tolist()


def test_a_compacted_row_is_question_survivors_local_window_zeros():
    cut = Cut(first=1, num_candidates=4, num_kept=2, local_window=2)
    row, freed = one(cut, [7, 3, 6, 2, 5, 1, 4, 0], [0, 0, 0.1, 0.9, 0, 0.8, 0.2, 0])
    assert row == [7, 3, 5, 1, 4, 0, 0, 0]
    assert freed == [6, 2]


def test_ties_keep_the_older_tokens():
    cut = Cut(first=1, num_candidates=4, num_kept=2, local_window=1)
    assert one(cut, [1, 2, 3, 4, 5, 6], [1.0] * 7) == ([1, 2, 3, 6, 0, 0], [4, 5])


def test_an_empty_selection_leaves_question_and_local_window():
    cut = Cut(first=2, num_candidates=2, num_kept=0, local_window=1)
    assert one(cut, [1, 2, 3, 4, 5], [1.0] * 6) == ([1, 2, 5, 0, 0], [3, 4])


def test_an_empty_question_is_served():
    cut = Cut(first=0, num_candidates=2, num_kept=1, local_window=1)
    assert one(cut, [1, 2, 3], [0, 1.0, 2.0, 0]) == ([2, 3, 0], [1])


def test_scores_that_are_not_finite_never_beat_an_answer_token():
    cut = Cut(0, 4, 1, 1, answer_spans=((3, 4),))
    assert one(cut, [1, 2, 3, 4, 5], [0, INF, NAN, INF, -INF, 0]) == ([4, 5, 0, 0, 0], [1, 2, 3])


def test_answer_tokens_of_the_local_window_stay_protected_for_the_next_time():
    table = torch.tensor([[0] * 6, [1, 2, 3, 4, 5, 0]], dtype=torch.int32)
    pool = ScorePool(6, "cpu")
    cut = Cut(0, 3, 1, 2, answer_spans=((4, 5),))
    apply_compaction(plan_compaction([1], [cut]), table, pool, torch.zeros(2).long())
    assert pool.scores.tolist() == [0, 0, 0, 0, 0, INF]


def test_requests_of_unequal_length_do_not_touch_each_other():
    table = torch.zeros(4, 9, dtype=torch.int32)
    table[1, :9] = torch.arange(1, 10)
    table[2, :3] = torch.arange(10, 13)
    table[3, :4] = torch.arange(13, 17)
    dropped = torch.tensor([0, 5, 0, 0])
    plan = plan_compaction([3, 1], [Cut(1, 2, 1, 1), Cut(0, 8, 3, 1)])
    freed = apply_compaction(plan, table, ScorePool(17, "cpu"), dropped)
    assert table[1].tolist() == [1, 2, 3, 9, 0, 0, 0, 0, 0]
    assert table[2].tolist() == [10, 11, 12, 0, 0, 0, 0, 0, 0]
    assert table[3].tolist() == [13, 14, 16, 0, 0, 0, 0, 0, 0]
    assert freed.tolist() == [15, 4, 5, 6, 7, 8]
    assert dropped.tolist() == [0, 10, 0, 1]


def test_a_cut_that_frees_nothing_is_not_planned():
    plan = plan_compaction([1, 2], [Cut(3, 4, 4, 2), Cut(3, 5, 4, 2)])
    assert (plan.rows, plan.num_dropped) == ((2,), 1)
    assert plan_compaction([1], [Cut(3, 0, 0, 2)]).cuts == ()


def test_a_plan_names_the_answer_cells_of_every_request():
    plan = plan_compaction([4, 2], [Cut(1, 3, 1, 1, ((1, 3),)), Cut(0, 3, 2, 1, ((0, 1), (2, 4)))])
    assert plan.answer_cells == [(4, 1), (4, 2), (2, 0), (2, 2), (2, 3)]


def test_a_plan_says_where_each_request_frees():
    plan = plan_compaction([4, 2], [Cut(1, 3, 1, 1), Cut(0, 6, 2, 2)])
    assert plan.sizes().T.tolist() == [[4, 1, 3, 1, 1, 0], [2, 0, 6, 2, 2, 2]]


@pytest.mark.parametrize("num_requests", [1, 2, 100])
def test_any_number_of_requests_is_compacted_in_one_go(num_requests):
    table = torch.zeros(num_requests + 1, 5, dtype=torch.int32)
    table[1:] = torch.arange(1, 5 * num_requests + 1).view(num_requests, 5)
    plan = plan_compaction(range(1, num_requests + 1), [Cut(1, 3, 1, 1)] * num_requests)
    dropped = torch.zeros(num_requests + 1, dtype=torch.int64)
    freed = apply_compaction(plan, table, ScorePool(5 * num_requests + 1, "cpu"), dropped)
    assert len(set(freed.tolist())) == 2 * num_requests
    assert dropped.tolist() == [0] + [2] * num_requests
    assert table[1:, 3:].sum() == 0
