"""What each policy keeps, written out; no policy lets an answer token go."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sgl_dynts
from sgl_dynts.compaction import apply_compaction, plan_compaction
from sgl_dynts.expected_attention import HeldLayer, LayerQueries, QueryStatistics, Rotation
from sgl_dynts.policies import (
    CALIBRATED,
    FULL,
    RKV,
    Calibrated,
    Candidates,
    LayerView,
    ModelFacts,
    Random,
    ScoredOnce,
    Sets,
    build_policies,
    needing,
    policy_names,
    received_from_newest,
    register,
    rewrite_scores,
    scores_by_head,
)
from sgl_dynts.policies.attention import QUERIES_AT_ONCE
from sgl_dynts.policies.random import mix
from sgl_dynts.score_pool import HIGHEST_SCORE, ScorePool
from sgl_dynts.window import Cut

INF = float("inf")
SEPARATOR = 5
FLAT = Rotation(torch.ones(1, 0), torch.ones(1, 0))
STATISTICS = QueryStatistics(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2, 2), torch.tensor([[1.0]]))
QUERIES = (LayerQueries(STATISTICS, FLAT),)
FACTS = ModelFacts(frozenset({SEPARATOR}), queries=QUERIES)
SCORING = {name: policy for name, policy in build_policies(FACTS).items() if name != FULL}


def candidates(
    scores: list[float], first_new: int = 10, tokens: list[int] | None = None, question: int = 10
) -> Candidates:
    """As many new candidates as tokens, by default all; the question has ids 0, 1, 2.."""
    tokens = [9] * len(scores) if tokens is None else tokens
    positions = np.arange(first_new, first_new + len(tokens))
    held = torch.ones(question + len(scores) + 3, 1, 2)
    return Candidates(
        torch.tensor(scores),
        positions,
        np.array(tokens),
        range(question),
        layers=lambda: [HeldLayer(held, held, 1.0)],
        predicted=lambda: torch.tensor([[scores]]),
    )


def kept(name: str, some: Candidates, count: int) -> list[int]:
    """Which of the candidates survive; they lie in slots 1, 2, 3.."""
    num = len(some.scores)
    pool = ScorePool(num + 2, "cpu")
    pool.scores[1 : num + 1] = some.scores
    rewrite_scores(SCORING[name], some, pool.scores, torch.arange(1, num + 1))
    table = torch.tensor([[0] * (num + 1), [*range(1, num + 2)]], dtype=torch.int32)
    plan = plan_compaction([1], [Cut(0, num, count, 1)])
    apply_compaction(plan, table, pool, torch.zeros(2).long())
    return [slot - 1 for slot in table[1].tolist() if 0 < slot <= num]


def test_every_name_but_full_scores():
    assert (*SCORING, FULL) == policy_names()


def test_a_name_belongs_to_one_class():
    with pytest.raises(ValueError, match=r"is called 'window', as .*\.Recent is already"):

        @register
        class Other(Random):
            name = "window"


def test_a_class_that_does_not_say_who_it_is_is_refused():
    with pytest.raises(ValueError, match="Nameless has no name, color, keeps"):

        @register
        class Nameless(ScoredOnce):
            pass


def test_the_predictor_keeps_the_highest_and_bottom_the_lowest():
    some = candidates([0.3, 0.1, 0.5, 0.2])
    assert kept("predictor", some, 2) == [0, 2]
    assert kept("bottom", some, 2) == [1, 3]


def test_bottom_judges_a_survivor_again_as_it_did_before():
    assert kept("bottom", candidates([-0.4, -0.1, 0.2, 0.3], tokens=[9, 9]), 2) == [1, 2]


def test_the_window_keeps_the_newest():
    assert kept("window", candidates([3.0, 2.0, 1.0, 0.0]), 2) == [2, 3]


def test_a_survivor_keeps_the_score_it_had():
    some = candidates([20.0, 3.0, 0.0, 0.0], first_new=10, tokens=[9, 9])
    assert kept("window", some, 2) == [0, 3]


def test_streaming_keeps_the_first_four_thinking_tokens_and_the_newest():
    assert kept("streaming", candidates([0.0] * 9), 6) == [0, 1, 2, 3, 7, 8]


def test_streaming_has_no_sinks_among_later_tokens():
    assert kept("streaming", candidates([0.0] * 9, first_new=14), 2) == [7, 8]


def test_separators_come_before_newer_tokens_and_newest_first():
    some = candidates([0.0] * 6, tokens=[5, 5, 9, 5, 9, 9])
    assert kept("sepllm", some, 2) == [1, 3]
    assert kept("sepllm", some, 4) == [0, 1, 3, 5]


def test_positions_of_separators_stay_apart_for_a_million_tokens():
    scores = SCORING["sepllm"].score(candidates([0.0] * 3, first_new=1_000_001, tokens=[5, 5, 5]))
    assert scores.tolist() == sorted(set(scores.tolist()))


def by_hand(number: int) -> int:
    """SplitMix64's finaliser in Python's integers."""
    wrap = (1 << 64) - 1
    state = (number + 0x9E3779B97F4A7C15) & wrap
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & wrap
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & wrap
    return (state ^ (state >> 31)) >> 40


def test_the_hash_is_splitmix64():
    numbers = np.array([0, 1, 2, 1 << 31, 1 << 62])
    assert mix(numbers).tolist() == [by_hand(int(number)) for number in numbers]


def test_random_scores_repeat_and_differ_by_question_and_seed():
    some, other = candidates([0.0] * 50), candidates([0.0] * 50, question=11)
    first = Random().score(some)
    assert torch.equal(first, Random().score(some))
    assert not torch.equal(first, Random().score(other))
    assert not torch.equal(first, Random(seed=1).score(some))
    assert len(set(first.tolist())) == 50


def test_random_scores_are_uniform():
    scores = Random().score(candidates([0.0] * 20_000))
    shares = torch.histc(scores, bins=10, min=0, max=1) / 20_000
    assert shares.sub(0.1).abs().max() < 0.01
    assert scores.min() >= 0
    assert scores.max() < 1


@pytest.mark.parametrize("name", [name for name in SCORING if name not in needing("queries")])
def test_an_answer_token_outlives_all_others_under_every_policy(name):
    assert kept(name, candidates([0.5, INF, 0.7, INF, 0.1, 0.2]), 2) == [1, 3]


@pytest.mark.parametrize("name", [name for name in SCORING if name not in needing("queries")])
def test_only_the_candidates_slots_are_written(name):
    pool = torch.tensor([7.0, 0.1, 0.2, 0.3, 8.0])
    rewrite_scores(SCORING[name], candidates(pool[1:4].tolist()), pool, torch.arange(1, 4))
    assert (pool[0], pool[4]) == (7.0, 8.0)


def view(queries: int = 3, held: int = 12, kv_heads: int = 2, group: int = 2) -> LayerView:
    torch.manual_seed(held)
    size = 8
    return LayerView(
        torch.randn(queries, kv_heads * group, size), torch.randn(held, kv_heads, size), size**-0.5
    )


def seen_by_hand(view: LayerView, head: int, row: int) -> list[float]:
    """What one query attends to, by the definition of attention."""
    held, num = len(view.keys), len(view.queries)
    keys = view.keys[: held - num + row + 1, head // 2]
    logits = [float(view.queries[row, head] @ key) * view.scaling for key in keys]
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits] + [0.0] * (num - row - 1)


def observed(view: LayerView, question: int = 4, count: int = 5) -> Candidates:
    some = candidates([0.0] * count, question=question, tokens=[9] * count)
    return replace(some, views=lambda: [view])


def test_attention_is_the_softmax_of_scaled_products_over_what_came_before():
    one = view()
    found = one.attention().flatten(0, 1)
    for head in range(4):
        for row in range(3):
            assert found[head, row].tolist() == pytest.approx(seen_by_hand(one, head, row), abs=1e-6)


@pytest.mark.parametrize("queries", [1, 3, QUERIES_AT_ONCE + 2])
def test_what_a_key_receives_is_the_sum_over_queries_and_the_mean_over_heads(queries):
    one = view(queries, held=queries + 5)
    rows = [seen_by_hand(one, head, row) for head in range(4) for row in range(queries)]
    expected = [sum(column) / 4 for column in zip(*rows, strict=True)]
    assert one.received().tolist() == pytest.approx(expected, abs=1e-5)


def test_the_newest_queries_of_many_requests_give_what_each_gives_alone_and_padding_gets_nothing():
    some = [view(1, held) for held in (3, 7, 5)]
    keys = torch.full((3, 7, 2, 8), torch.nan)
    for index, one in enumerate(some):
        keys[index, : len(one.keys)] = one.keys
    is_held = torch.arange(7) < torch.tensor([3, 7, 5])[:, None]
    found = received_from_newest(torch.cat([one.queries for one in some]), keys, is_held, some[0].scaling)
    for index, one in enumerate(some):
        heads = [seen_by_hand(one, head, 0) for head in range(4)]
        expected = [sum(column) / 4 for column in zip(*heads, strict=True)]
        assert found[index].tolist() == pytest.approx(expected + [0.0] * (7 - len(expected)), abs=1e-6)


def test_h2o_keeps_what_received_most_whatever_the_predictor_says():
    some = replace(
        candidates([9.0, 0.1, INF, 0.3, 0.2], tokens=[9] * 3),
        received=lambda: torch.tensor([1.0, 3.0, 0.0, 2.0, 3.0]),
    )
    assert kept("h2o", some, 2) == [1, 2]
    assert kept("h2o", some, 3) == [1, 2, 4]


def test_snapkv_sums_attention_over_the_window_and_averages_neighbours():
    one = view()
    sums = [sum(seen_by_hand(one, h, w)[4 + i] for h in range(4) for w in range(3)) / 4 for i in range(5)]
    padded = [0.0, 0.0, *sums, 0.0, 0.0]
    expected = [sum(padded[i : i + 5]) / 5 for i in range(5)]
    assert SCORING["snapkv"].score(observed(one)).tolist() == pytest.approx(expected, abs=1e-6)


def test_rkv_prefers_a_lone_key_to_copies_and_the_newest_copy_to_the_older():
    keys = torch.eye(12, 16)[:, None]
    keys[[4, 5, 6]] = keys[4].clone()
    blind = LayerView(torch.zeros(2, 1, 16), keys, 1.0)
    oldest, middle, newest, lone, other = SCORING["rkv"].score(observed(blind)).tolist()
    assert oldest < newest
    assert middle < newest
    assert newest <= lone == other


def test_rkv_weighs_importance_against_redundancy():
    one = view()
    seen = [sum(seen_by_hand(one, h, w)[4 + i] for h in range(4) for w in range(3)) for i in range(5)]
    importance = RKV(weight=1.0, kernel=1).score(observed(one))
    assert importance.tolist() == pytest.approx([value / 12 for value in seen], abs=1e-6)
    redundancy = -RKV(weight=0.0).score(observed(one))
    assert redundancy.sum().item() == pytest.approx(1)
    mixed = RKV(weight=0.3, kernel=1).score(observed(one))
    assert torch.allclose(mixed, 0.3 * importance - 0.7 * redundancy)


def test_layers_count_alike():
    one, two = view(), view(held=12, queries=2)
    both = replace(observed(one), views=lambda: [one, two])
    policy = SCORING["snapkv"]
    expected = (policy.score(observed(one)) + policy.score(observed(two))) / 2
    assert torch.allclose(policy.score(both), expected)


def test_the_policy_that_the_guide_writes_works():
    text = (Path(sgl_dynts.__file__).parent / "POLICIES.md").read_text()
    names: dict = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    candidates = Candidates(torch.zeros(5), np.arange(10, 14), np.zeros(4, dtype=np.int64), [1, 2])
    kept = names["EveryOther"]().score(candidates).argsort(descending=True)[:3]
    assert kept.tolist() == [3, 1, 4]  # of positions 12, 10, 13


def layer_view(seed: int, held: int = 12, heads: int = 2, group: int = 2) -> LayerView:
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(held, heads, 4, generator=draw)
    return LayerView(torch.randn(3, heads * group, 4, generator=draw), keys, 0.5)


def seen(num_layers: int = 3) -> Candidates:
    """Six candidates between two question tokens and four local ones, of layers with two KV heads."""
    some = candidates([0.0] * 6, question=2)
    return replace(some, views=lambda: [layer_view(seed) for seed in range(num_layers)])


@pytest.mark.parametrize("name", ["snapkv", "rkv"])
def test_a_head_judges_what_it_sees_itself(name):
    by_head = SCORING[f"{name}_per_head"].score(seen())
    assert by_head.shape == (3, 2, 6)
    for layer in range(3):
        view = layer_view(layer)
        for head in range(2):
            alone = LayerView(view.queries[:, 2 * head : 2 * head + 2], view.keys[:, [head]], 0.5)
            only = replace(seen(), views=lambda alone=alone: [alone])
            wanted = SCORING[f"{name}_per_head"].score(only)
            torch.testing.assert_close(by_head[layer, head], wanted[0, 0])


def test_snapkv_with_one_set_is_the_mean_of_the_heads():
    by_head = SCORING["snapkv_per_head"].score(seen())
    torch.testing.assert_close(SCORING["snapkv"].score(seen()), by_head.mean((0, 1)))


def test_what_a_head_has_received_adds_up_to_what_all_have():
    view = layer_view(1)
    torch.testing.assert_close(view.received(), view.received_by_head().mean(0))
    padded = torch.ones(1, 12, dtype=torch.bool)
    given = view.queries[-1:], view.keys[None], padded, view.scaling
    torch.testing.assert_close(
        received_from_newest(*given), received_from_newest(*given, by_head=True).mean(1)
    )


def test_every_head_of_every_rank_draws_its_own_tokens_anew_at_each_compaction():
    facts = [ModelFacts(num_layers=2, num_kv_heads=2, first_kv_head=2 * rank) for rank in (0, 1)]
    ranks = [build_policies(each)["random_per_head"] for each in facts]
    one = build_policies(ModelFacts(num_layers=2, num_kv_heads=4))["random_per_head"]
    some = candidates([0.0] * 50)
    draws = torch.cat([policy.score(some) for policy in ranks], 1)
    assert torch.equal(draws, one.score(some))
    assert draws.shape == (2, 4, 50)
    assert draws.unique().numel() == 2 * 4 * 50
    assert 0.45 < float(draws.mean()) < 0.55
    later = replace(some, positions=some.positions + 1)
    assert not torch.equal(one.score(later), draws)


def test_a_set_per_layer_is_the_same_in_all_heads_of_a_layer():
    class PerLayer(Random):
        name = "per-layer"
        sets = Sets.PER_LAYER

        def score(self, candidates):
            return torch.tensor([[1.0, math.nan, INF], [3, 4, 5]])

    scores = scores_by_head(PerLayer(), candidates([0.0] * 3), 2)
    assert scores.tolist() == [[[1, 0, HIGHEST_SCORE]] * 2, [[3, 4, 5]] * 2]


def test_calibrated_keeps_what_queries_to_come_will_take_and_a_share_of_the_newest():
    first_numbers = [9.0, 9.0, 0.0, 2.0, 1.0, 1.0, 9.0]  # two of question, four candidates, one newest
    keys = torch.tensor([[[number, 5.0]] for number in first_numbers])
    values = torch.tensor([[[3.0, 4.0]]] * 5 + [[[0.0, 1.0]]] * 2)  # sizes 5 and 1
    some = replace(
        candidates([0.0] * 4, question=2), layers=lambda: [HeldLayer(keys, values, 0.5)], newest=6
    )
    found = SCORING[CALIBRATED].score(some)
    total = math.log(sum(math.exp(number / 2) for number in first_numbers))
    places = [-1.5, -0.5, 0.5, 1.5]
    spread = math.sqrt(1.25)
    wanted = [
        number / 2 - total + math.log(size) + 0.3 * place / spread
        for number, size, place in zip(first_numbers[2:6], [5, 5, 5, 1], places, strict=True)
    ]
    assert found.shape == (1, 1, 4)
    assert found[0, 0].tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_horizon_is_as_long_as_tokens_are_held():
    assert Calibrated.build(replace(FACTS, period=1800)).horizon[:2] == (28, 112)
    assert Calibrated.build(replace(FACTS, period=3)).horizon[:2] == (1, 4)


def standard(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / spread for value in values]


def test_triattention_takes_the_query_head_of_a_group_that_wants_a_key_most():
    """One head looks along the first number; the other scatters, so size alone counts: 2 |k|."""
    statistics = QueryStatistics(
        torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2, 2), torch.tensor([[1.0], [2.0]])
    )
    keys = torch.tensor([[[9.0, 9.0]], [[3.0, 4.0]], [[7.0, 7.0]], [[-1.0, 0.0]], [[0.0, 2.0]]])
    some = replace(
        candidates([0.2, INF, 0.4, 0.8], question=1), layers=lambda: [HeldLayer(keys, keys, 0.5)]
    )
    facts = replace(FACTS, queries=(LayerQueries(statistics, FLAT),))
    found = build_policies(facts)["triattention_per_head"].score(some)
    assert found.shape == (1, 1, 4)
    logits, sizes = standard([3.0, -1.0, 0.0]), standard([10.0, 2.0, 4.0])
    wanted = [max(pair) for pair in zip(logits, sizes, strict=True)]
    assert found[0, 0, [0, 2, 3]].tolist() == pytest.approx(wanted, rel=1e-5)


def test_hybrid_adds_what_was_predicted_to_what_is_expected():
    keys = torch.tensor([[[number, 0.0]] for number in [4.0, 2.0, 6.0, 0.0]])
    some = replace(
        candidates([0.2, INF, 0.4, 0.8], question=0),
        layers=lambda: [HeldLayer(keys, torch.ones(4, 1, 1), 1.0)],
        predicted=lambda: torch.tensor([[[0.2, INF, 0.4, 0.1]]]),  # not as in the pool: a head's own
    )
    found = SCORING["hybrid"].score(some)[0, 0].tolist()
    expected, predicted = [4.0, 6.0, 0.0], [math.log(0.2), math.log(0.4), math.log(0.1)]
    both = zip(standard(expected), standard(predicted), strict=True)
    wanted = [one + 2 * other for one, other in both]
    assert [found[0], found[2], found[3]] == pytest.approx(wanted, rel=1e-4)
    assert kept("hybrid", some, 2) == [1, 2]
