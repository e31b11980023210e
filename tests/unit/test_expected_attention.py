"""What a key can expect, against draws of queries and against rotations written out."""

import math

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sgl_dynts.expected_attention import (
    MeanRotation,
    QueryMoments,
    QueryStatistics,
    Rotation,
    expected_attention,
    expected_output,
)

HELD, KV_HEADS, GROUP, DIM = 7, 2, 3, 8
SCALING = DIM**-0.5


def rotation_of(width: int = DIM, positions: int = 600, interleaved: bool = False) -> Rotation:
    frequencies = 100.0 ** (-torch.arange(width // 2) / (width // 2))
    angles = torch.arange(positions)[:, None] * frequencies
    return Rotation(angles.cos(), angles.sin(), interleaved)


def turned(vector: list[float], angles: list[float], interleaved: bool) -> list[float]:
    """One vector, rotated by plane trigonometry; what stands beyond the angles' pairs stays."""
    half = len(angles)
    result = list(vector)
    for pair, angle in enumerate(angles):
        one, two = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
        a, b = vector[one], vector[two]
        result[one] = a * math.cos(angle) - b * math.sin(angle)
        result[two] = b * math.cos(angle) + a * math.sin(angle)
    return result


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [DIM, DIM // 2])
def test_a_rotation_is_undone(interleaved, width):
    rotation = rotation_of(width, interleaved=interleaved)
    before = torch.randn(3, 2, DIM)
    positions = torch.tensor([5, 0, 77])
    after = before.clone()
    for token, position in enumerate(positions.tolist()):
        angles = torch.atan2(rotation.sin[position], rotation.cos[position]).tolist()
        for head in range(2):
            after[token, head] = torch.tensor(turned(before[token, head].tolist(), angles, interleaved))
    torch.testing.assert_close(rotation.undo(after, positions), before)


def test_an_attention_factor_is_undone_as_well():
    plain = rotation_of()
    scaled = Rotation(plain.cos * 1.3, plain.sin * 1.3)
    before = torch.randn(4, 2, DIM)
    positions = torch.arange(4)
    cos, sin = (torch.cat([part[positions]] * 2, -1)[None] for part in (scaled.cos, scaled.sin))
    by_head = before.transpose(0, 1)[None]
    after, _ = apply_rotary_pos_emb(by_head, by_head, cos, sin)
    torch.testing.assert_close(scaled.undo(after[0].transpose(0, 1), positions), before)


def random_statistics(seed: int = 0) -> QueryStatistics:
    draw = torch.Generator().manual_seed(seed)
    heads = KV_HEADS * GROUP
    root = torch.randn(heads, DIM, DIM, generator=draw) * 0.4
    mean = torch.randn(heads, DIM, generator=draw)
    return QueryStatistics(mean, root @ root.transpose(1, 2), mean[:, : DIM // 2].abs())


def test_attention_is_what_drawn_queries_give_on_the_mean():
    """Of one position the mean of exp(logit) over many draws, divided by the sum over keys."""
    statistics, rotation, position = random_statistics(), rotation_of(), 40
    keys = torch.randn(HELD, KV_HEADS, DIM)
    found = expected_attention(keys, statistics, rotation.ahead_of(position, (1,)), SCALING)
    normal = torch.distributions.MultivariateNormal(
        statistics.mean.double(), statistics.covariance.double() + 1e-9 * torch.eye(DIM)
    )
    torch.manual_seed(0)
    queries = normal.sample((200_000,)).transpose(0, 1)
    cos, sin = rotation.cos[position + 1].double(), rotation.sin[position + 1].double()
    one, two = queries.chunk(2, -1)
    rotated = torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
    for head in range(KV_HEADS * GROUP):
        logits = rotated[head] @ keys[:, head // GROUP].double().T * SCALING
        means = logits.exp().mean(0)
        wanted = (means / means.sum()).float()
        torch.testing.assert_close(found[head // GROUP, head % GROUP], wanted, rtol=0.05, atol=0.005)


def test_positions_to_come_are_averaged_and_end_with_the_table():
    rotation = rotation_of(positions=100)
    mean = rotation.ahead_of(90, (1, 5, 400))
    torch.testing.assert_close(mean.cos, rotation.cos[[91, 95, 99]].mean(0))
    torch.testing.assert_close(mean.sin, rotation.sin[[91, 95, 99]].mean(0))


def test_a_token_counts_by_its_attention_times_the_size_of_its_value():
    statistics, mean = random_statistics(3), rotation_of().ahead_of(10)
    keys, values = torch.randn(HELD, KV_HEADS, DIM), torch.randn(HELD, KV_HEADS, 5)
    attention = expected_attention(keys, statistics, mean, SCALING)
    torch.testing.assert_close(attention.sum(-1), torch.ones(KV_HEADS, GROUP))
    found = expected_output(keys.bfloat16().float(), values, statistics, mean, SCALING)
    again = expected_output(keys.bfloat16(), values, statistics, mean, SCALING)
    assert torch.equal(found, again)
    exact = expected_output(keys, values, statistics, mean, SCALING)
    for head in range(KV_HEADS):
        for token in range(HELD):
            size = math.sqrt(sum(number**2 for number in values[token, head].tolist()))
            wanted = sum(attention[head, :, token].tolist()) / GROUP * size
            assert exact[head, token].item() == pytest.approx(wanted, rel=1e-5)


def test_without_a_rotation_nothing_turns():
    flat = MeanRotation(torch.ones(2), torch.zeros(2), interleaved=False)
    vectors = torch.randn(3, DIM)
    assert torch.equal(flat.back(vectors), vectors)


@pytest.mark.parametrize("frequency", [1.0, 0.25, 1e-5])
def test_a_frequency_is_known_far_beyond_the_table(frequency):
    exact = torch.tensor([frequency], dtype=torch.float64)
    angles = torch.arange(3000, dtype=torch.float64)[:, None] * exact
    found = Rotation(1.2 * angles.cos().float(), 1.2 * angles.sin().float()).frequencies()
    assert found.item() * 65536 == pytest.approx(frequency * 65536, abs=1e-5)


def test_a_frequency_of_a_table_in_bfloat16_fits_the_table():
    angles = torch.arange(3000, dtype=torch.float64)[:, None] * 0.3
    found = Rotation(angles.cos().bfloat16().float(), angles.sin().bfloat16().float()).frequencies()
    assert found.item() == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize(("interleaved", "wanted"), [(False, [0, 1, 4, 5]), (True, [0, 2, 4, 5])])
def test_pairs_are_what_a_rotation_turns_then_the_rest_half_with_half(interleaved, wanted):
    one, two = rotation_of(4, interleaved=interleaved).split(torch.arange(DIM))
    assert one.tolist() == wanted
    assert sorted([*one.tolist(), *two.tolist()]) == list(range(DIM))


@pytest.mark.parametrize("pairs", [[(0, 4), (1, 5), (2, 6), (3, 7)], [(0, 2), (1, 3), (4, 6), (5, 7)]])
def test_moments_are_those_of_all_queries_however_they_came(pairs):
    """Of eight numbers a rotation turns all, or four."""
    queries = torch.randn(50, 3, DIM) + 2
    moments = QueryMoments(3, DIM, rotation_of(DIM if pairs[0] == (0, 4) else 4))
    for part in queries.split(7):
        moments.add(part)
    statistics = moments.statistics()
    torch.testing.assert_close(statistics.mean, queries.mean(0))
    for head in range(3):
        wanted = torch.cov(queries[:, head].T, correction=0)
        torch.testing.assert_close(statistics.covariance[head], wanted)
        for pair, (one, two) in enumerate(pairs):
            lengths = [math.hypot(query[one], query[two]) for query in queries[:, head].tolist()]
            assert statistics.modulus[head, pair].item() == pytest.approx(sum(lengths) / 50, rel=1e-5)


def test_no_statistics_of_one_query():
    moments = QueryMoments(1, DIM, rotation_of())
    moments.add(torch.randn(1, 1, DIM))
    with pytest.raises(ValueError, match="statistics of 1 queries"):
        moments.statistics()
