"""A calibration file gives back what was saved; one that cannot be used is named."""

import pytest
import torch
from safetensors.torch import save_file

from sgl_dynts.calibration import Calibration, join_heads, load_calibration, save_calibration
from sgl_dynts.expected_attention import QueryMoments, QueryStatistics


def some(layers: int = 2, heads: int = 4, dim: int = 6) -> Calibration:
    found = []
    for layer in range(layers):
        moments = QueryMoments(heads, dim)
        moments.add(torch.randn(30, heads, dim, generator=torch.Generator().manual_seed(layer)))
        found.append(moments.statistics())
    return Calibration(tuple(found), "a model", 30)


def same(one: Calibration, other: Calibration) -> bool:
    pairs = list(zip(one.layers, other.layers, strict=True))
    alike = all(torch.equal(a.mean, b.mean) and torch.equal(a.covariance, b.covariance) for a, b in pairs)
    return alike and (one.fingerprint, one.num_tokens) == (other.fingerprint, other.num_tokens)


def test_what_was_saved_comes_back(tmp_path):
    path = tmp_path / "dynts" / "calibration.safetensors"
    save_calibration(path, some())
    assert same(load_calibration(path), some())


def test_ranks_take_their_heads_and_give_them_back():
    whole = some()
    ranks = [whole.of_heads(slice(0, 2)), whole.of_heads(slice(2, 4))]
    assert ranks[1].layers[0].mean.shape == (2, 6)
    assert same(join_heads(ranks), whole)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, None, "no calibration file that this release reads"),
        ({}, {"format_version": "9"}, "no calibration file that this release reads"),
        ({"mean": torch.zeros(2, 3, 4)}, {}, "no tensor covariance"),
        (
            {"mean": torch.zeros(2, 3, 4), "covariance": torch.zeros(2, 3, 4, 5)},
            {},
            r"\[2, 3, 4, 5\] are not",
        ),
        (
            {"mean": torch.zeros(1, 1, 2), "covariance": torch.full((1, 1, 2, 2), torch.nan)},
            {},
            "a number is not finite",
        ),
        (
            {"mean": torch.zeros(1, 1, 2), "covariance": torch.zeros(1, 1, 2, 2)},
            {"num_tokens": "many"},
            "bad header",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, tensors, metadata, message):
    path = tmp_path / "bad.safetensors"
    whole = {"format_version": "1", "fingerprint": "a model", "num_tokens": "3"}
    save_file(tensors, path, metadata=None if metadata is None else whole | metadata)
    with pytest.raises(ValueError, match=rf"bad.safetensors: .*{message}"):
        load_calibration(path)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_calibration(tmp_path)
    assert isinstance(some().layers[0], QueryStatistics)
