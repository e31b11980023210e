"""All layers judged in one launch against the judgement of each in torch, and the kernel for an H100."""

import re
from argparse import Namespace
from dataclasses import dataclass, replace

import pytest
import torch

from benchmark.gpu import kernels
from benchmark.harness.shapes import roofline_shape
from sgl_dynts import expected_kernels
from sgl_dynts.expected_attention import HeldLayer, LayerQueries, QueryStatistics, Rotation
from sgl_dynts.expected_layers import (
    PairedQueries,
    expected_with_kernel,
    expected_with_torch,
    pair_places,
)
from sgl_dynts.roofline import H200, head_judgement_seconds
from tests.unit import test_kernels
from tests.unit.test_kernels import Recorder, compile_within_limits

interpreted = test_kernels.interpreted

LAYERS, POSITION, HORIZON = 3, 40, (1, 5, 9)
NO_MODULUS = torch.empty(0)
"""Expected attention asks for none."""
MOST_SHARED = 227 * 1024
"""Bytes that one program may hold on an H100."""


@dataclass(frozen=True)
class Heads:
    """The sizes of a model's heads."""

    kv_heads: int = 2
    group: int = 3
    head_dim: int = 32
    value_dim: int = 32
    turned: int = 16
    """Pairs that the rotation turns."""
    interleaved: bool = False
    dtype: torch.dtype = torch.float32


def queries_of(heads: Heads, draw: torch.Generator) -> list[LayerQueries]:
    """Layers of which the second rotates otherwise than the others."""
    angles = torch.rand(2, 60, heads.turned, generator=draw) * 6
    rotations = [Rotation(each.cos() * 1.1, each.sin() * 1.1, heads.interleaved) for each in angles]
    found = []
    for layer in range(LAYERS):
        count = heads.kv_heads * heads.group
        root = torch.randn(count, heads.head_dim, heads.head_dim, generator=draw) * 0.4
        mean = torch.randn(count, heads.head_dim, generator=draw)
        statistics = QueryStatistics(mean, root @ root.transpose(1, 2), NO_MODULUS)
        found.append(LayerQueries(statistics, rotations[layer % 2]))
    return found


def layers_of(heads: Heads, num_held: int, draw: torch.Generator) -> list[HeldLayer]:
    """A pool in which a request's slots are out of order, and slots lie further apart than they need."""
    room = 2 * num_held + 3
    slots = torch.randperm(room, generator=draw)[:num_held]
    sizes = (room, heads.kv_heads + 1)
    layers = []
    for layer in range(LAYERS):
        keys = torch.randn(*sizes, heads.head_dim, generator=draw).to(heads.dtype)[:, : heads.kv_heads]
        values = torch.randn(*sizes, heads.value_dim, generator=draw).to(heads.dtype)[:, : heads.kv_heads]
        scales = (0.5, 2.0) if heads.dtype.itemsize == 1 else (1.0, 1.0)
        layers.append(HeldLayer(keys, values, 0.2 + 0.1 * layer, slots, *scales))
    return layers


def check(heads: Heads, num_held: int, seed: int = 0) -> None:
    draw = torch.Generator().manual_seed(seed)
    queries, layers = queries_of(heads, draw), layers_of(heads, num_held, draw)
    wanted = expected_with_torch(layers, queries, POSITION, HORIZON)
    found = expected_with_kernel(layers, PairedQueries.of(queries), POSITION, HORIZON)
    assert found.shape == (LAYERS, heads.kv_heads, num_held)
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(
    "heads",
    [
        Heads(),
        Heads(kv_heads=1, group=1),
        Heads(interleaved=True),
        Heads(turned=8),
        Heads(turned=8, interleaved=True),
        Heads(head_dim=40, turned=20, value_dim=24),
        Heads(head_dim=48, turned=5, value_dim=17),
        Heads(dtype=torch.bfloat16),
        Heads(dtype=torch.float16),
        Heads(dtype=torch.float8_e4m3fn),
        Heads(dtype=torch.float8_e5m2),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_held", [1, 37])
def test_a_launch_judges_all_layers_as_torch_does(interpreted, heads, num_held):
    interpreted(check, heads, num_held)


@pytest.mark.parametrize("more", [-1, 0, 1, expected_kernels.MOST_TOKENS])
def test_more_tokens_than_a_program_holds(interpreted, more):
    interpreted(check, Heads(kv_heads=1, group=2), expected_kernels.MOST_TOKENS + more)


def test_a_benchmark_times_it_beside_the_roofline(interpreted):
    interpreted(time_judgement)


def time_judgement() -> None:
    cell = kernels.judgement_cell(Namespace(shape="tiny", repeats=1), torch.device("cpu"), H200, 2, 40)
    assert (cell.bench, cell.unit, cell.batch, cell.output_len) == (
        "judgement per head",
        "ms per round",
        2,
        40,
    )
    assert cell.dynts
    predicted = 1e3 * 2 * head_judgement_seconds(H200, roofline_shape("tiny"), 40)
    assert cell.prediction == {"dynts": predicted}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turned", [2, 3, 4])
def test_the_numbers_of_a_pair_are_those_that_a_rotation_turns_together(turned, interleaved):
    rotation = Rotation(torch.zeros(1, turned), torch.ones(1, turned), interleaved)  # a quarter turn
    one, two = pair_places(rotation, 8)
    assert sorted([*one.tolist(), *two.tolist()]) == list(range(8))
    for first, second in zip(one[:turned], two[:turned], strict=True):
        unit = torch.zeros(8)
        unit[second] = 1
        assert rotation.ahead_of(0, (0,)).back(unit).nonzero().flatten().tolist() == [first]


def test_layers_that_are_not_alike_are_not_laid_out_together():
    draw = torch.Generator().manual_seed(0)
    alike = queries_of(Heads(), draw)
    assert PairedQueries.fits(alike)
    for other in (Heads(group=2), Heads(turned=8), Heads(interleaved=True)):
        assert not PairedQueries.fits([*alike, *queries_of(other, draw)])
    rotation = Rotation(torch.ones(1, 3), torch.zeros(1, 3))
    odd = LayerQueries(QueryStatistics(torch.zeros(1, 7), torch.zeros(1, 7, 7), NO_MODULUS), rotation)
    assert not PairedQueries.fits([odd])


def test_rotations_that_layers_share_are_averaged_once():
    paired = PairedQueries.of(queries_of(Heads(), torch.Generator().manual_seed(0)))
    assert paired.rotation_of == (0, 1, 0)
    assert paired.turns(POSITION, HORIZON).shape == (2, 2, 16)


@pytest.mark.parametrize(
    "heads",
    [
        Heads(head_dim=64, value_dim=64, turned=32),
        Heads(head_dim=128, value_dim=128, turned=64),
        Heads(head_dim=256, value_dim=256, turned=64),
        Heads(head_dim=80, value_dim=80, turned=40, dtype=torch.float8_e4m3fn),
    ],
    ids=str,
)
def test_what_is_launched_compiles_for_an_h100_within_its_registers(heads, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    recorder = Recorder(expected_kernels.expected_logits_kernel)
    monkeypatch.setattr(expected_kernels, "expected_logits_kernel", recorder)
    if heads.dtype is torch.float32:
        heads = replace(heads, dtype=torch.bfloat16)
    draw = torch.Generator().manual_seed(0)
    queries, layers = queries_of(heads, draw), layers_of(heads, 9, draw)
    expected_with_kernel(layers, PairedQueries.of(queries), POSITION, HORIZON)
    compiled, usage = compile_within_limits(recorder, tmp_path, MOST_SHARED)
    assert max(map(int, re.findall(r"REG:(\d+)", usage))) <= 255, usage
    assert re.search(r"mma\.sync|wgmma", compiled.asm["ptx"]), "products are not on tensor cores"
