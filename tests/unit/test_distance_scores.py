"""What keys are worth at distances to come, against the formula of its paper in complex numbers."""

import cmath
import math
from dataclasses import dataclass

import pytest
import torch

from sgl_dynts.distance_scores import OFFSETS, DistantQueries
from sgl_dynts.expected_attention import LayerQueries, QueryMoments, Rotation

KV_HEADS, GROUP, DIM = 2, 3, 12
POSITIONS, NEWEST = 150, 93
HELD = (0, 1, 7, 40, 41, 92, 93)


@dataclass(frozen=True)
class Turning:
    """A rotation by its frequencies, one for each pair that it turns."""

    frequencies: tuple[float, ...]
    interleaved: bool = False
    factor: float = 1.0

    def table(self) -> Rotation:
        exact = torch.tensor(self.frequencies, dtype=torch.float64)
        angles = torch.arange(POSITIONS, dtype=torch.float64)[:, None] * exact
        cos, sin = (self.factor * part.float() for part in (angles.cos(), angles.sin()))
        return Rotation(cos, sin, self.interleaved)

    def pairs(self) -> list[tuple[int, int, float]]:
        """Places of both numbers of each pair, and the angle by which a position turns it."""
        turned = len(self.frequencies)
        rest = DIM // 2 - turned
        found = [
            (2 * pair, 2 * pair + 1, angle) if self.interleaved else (pair, pair + turned, angle)
            for pair, angle in enumerate(self.frequencies)
        ]
        return found + [(2 * turned + pair, 2 * turned + rest + pair, 0.0) for pair in range(rest)]

    def size(self, angle: float) -> float:
        return self.factor if angle else 1.0


def numbers(vector: torch.Tensor, turning: Turning) -> list[complex]:
    return [complex(vector[one], vector[two]) for one, two, _ in turning.pairs()]


def stored(keys: torch.Tensor, turning: Turning) -> torch.Tensor:
    """Keys [held, kv_heads, DIM] turned to their positions."""
    result = torch.empty_like(keys)
    for index, position in enumerate(HELD):
        for head in range(KV_HEADS):
            for number, (one, two, angle) in zip(
                numbers(keys[index, head], turning), turning.pairs(), strict=True
            ):
                turned = number * cmath.exp(1j * angle * position) * turning.size(angle)
                result[index, head, one], result[index, head, two] = turned.real, turned.imag
    return result


def twin(queries: torch.Tensor, key: torch.Tensor, position: int, turning: Turning) -> float:
    """S of one key, not rotated, at a position, for one head's queries [n, DIM]."""
    seen, total = [numbers(query, turning) for query in queries], 0.0
    for pair, (_, _, angle) in enumerate(turning.pairs()):
        mean = sum(query[pair] for query in seen) / len(seen)
        length = sum(abs(query[pair]) for query in seen) / len(seen)
        number = numbers(key, turning)[pair]
        phase = cmath.phase(mean) - cmath.phase(number)
        cosines = [math.cos(angle * (NEWEST + 1 - position + offset) + phase) for offset in OFFSETS]
        met = abs(mean) * sum(cosines) / len(cosines) + length - abs(mean)
        total += met * abs(number) * turning.size(angle) ** 2
    return total


@pytest.mark.parametrize(
    "turning",
    [
        Turning((1.0, 0.31, 0.1, 0.031, 0.01, 0.0031)),
        Turning((1.0, 0.31, 0.1, 0.031, 0.01, 0.0031), interleaved=True),
        Turning((1.0, 0.02), factor=1.3),
        Turning((1.0, 0.02), interleaved=True, factor=1.3),
        Turning(()),
    ],
    ids=str,
)
def test_scores_are_those_of_the_formula(turning):
    draw = torch.Generator().manual_seed(3)
    queries = torch.randn(20, KV_HEADS * GROUP, DIM, generator=draw) + 0.5
    keys = torch.randn(len(HELD), KV_HEADS, DIM, generator=draw)
    moments = QueryMoments(KV_HEADS * GROUP, DIM, turning.table())
    moments.add(queries)
    known = DistantQueries.of(LayerQueries(moments.statistics(), turning.table()))
    found = known.scores(stored(keys, turning), NEWEST)
    assert found.shape == (KV_HEADS, GROUP, len(HELD))
    for head in range(KV_HEADS):
        for member in range(GROUP):
            own = queries[:, head * GROUP + member]
            wanted = [twin(own, key[head], at, turning) for key, at in zip(keys, HELD, strict=True)]
            assert found[head, member].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_queries_stand_at_powers_of_two_beyond_the_next_token():
    assert OFFSETS[:4] == (1, 2, 4, 8)
    assert OFFSETS[-1] == 65536


def test_keys_in_bfloat16_are_taken_as_they_are():
    turning = Turning((0.5, 0.1))
    moments = QueryMoments(KV_HEADS, DIM, turning.table())
    moments.add(torch.randn(5, KV_HEADS, DIM))
    known = DistantQueries.of(LayerQueries(moments.statistics(), turning.table()))
    keys = torch.randn(4, KV_HEADS, DIM).bfloat16()
    assert torch.equal(known.scores(keys, 9), known.scores(keys.float(), 9))
