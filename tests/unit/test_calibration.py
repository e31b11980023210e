"""A calibration file gives back what was saved; one that cannot be used is named."""

import pytest
import torch
from safetensors.torch import save_file

from sgl_dynts.calibration import (
    CALIBRATION_FILE,
    Calibration,
    calibration_files,
    find_calibration,
    fingerprint_of,
    join_heads,
    keep_calibration,
    load_calibration,
    save_calibration,
    shipped_text,
)
from sgl_dynts.expected_attention import QueryMoments, QueryStatistics, Rotation

ROTATION = Rotation(torch.ones(9, 2), torch.zeros(9, 2))


def some(layers: int = 2, heads: int = 4, dim: int = 6) -> Calibration:
    found = []
    for layer in range(layers):
        moments = QueryMoments(heads, dim, ROTATION)
        moments.add(torch.randn(30, heads, dim, generator=torch.Generator().manual_seed(layer)))
        found.append(moments.statistics())
    return Calibration(tuple(found), "a model", 30)


def same(one: Calibration, other: Calibration) -> bool:
    pairs = list(zip(one.layers, other.layers, strict=True))
    alike = all(all(map(torch.equal, a.tensors, b.tensors)) for a, b in pairs)
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
        ({}, None, "no calibration file"),
        ({}, {"format_version": "1"}, "format_version is '1', this release reads '2'; calibrate again"),
        ({"modulus": None}, {}, "no tensor modulus"),
        (
            {"covariance": torch.zeros(2, 3, 4, 5)},
            {},
            r"covariance \[2, 3, 4, 5\], modulus \[2, 3, 2\] are not",
        ),
        (
            {"modulus": torch.zeros(2, 3, 4)},
            {},
            r"modulus \[2, 3, 4\] are not \[layers, heads, d\]",
        ),
        (
            {"modulus": torch.full((2, 3, 2), torch.nan)},
            {},
            "a number is not finite",
        ),
        (
            {},
            {"num_tokens": "many"},
            "bad header",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, tensors, metadata, message):
    path = tmp_path / "bad.safetensors"
    whole = {"format_version": "2", "fingerprint": "a model", "num_tokens": "3"}
    usual = {
        "mean": torch.zeros(2, 3, 4),
        "covariance": torch.zeros(2, 3, 4, 4),
        "modulus": torch.zeros(2, 3, 2),
    }
    written = {name: tensor for name, tensor in (usual | tensors).items() if tensor is not None}
    save_file(written, path, metadata=None if metadata is None else whole | metadata)
    with pytest.raises(ValueError, match=rf"bad.safetensors: .*{message}"):
        load_calibration(path)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_calibration(tmp_path)
    assert isinstance(some().layers[0], QueryStatistics)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model's folder, with a cache folder of the user's beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1 << 20))
    return folder


def test_a_fingerprint_tells_models_and_texts_apart(model):
    first = fingerprint_of(model, "text")
    assert fingerprint_of(model, "text") == first
    found = {first, fingerprint_of(model, "another text")}
    (model / "config.json").write_text("{ }")
    found.add(fingerprint_of(model, "text"))
    with (model / "model.safetensors").open("r+b") as file:
        file.seek((1 << 20) - 1)
        file.write(b"1")
    found.add(fingerprint_of(model, "text"))
    assert len(found) == 4


def test_a_calibration_is_kept_beside_the_model_and_found_again(model):
    def places():
        return calibration_files(model, "a model", beside=True)

    assert find_calibration(places(), "a model") is None
    path = keep_calibration(places(), some())
    assert path == model / "dynts" / "calibration.safetensors"
    found = find_calibration(places(), "a model")
    assert found is not None
    assert same(found[0], some())
    assert found[1] == path
    assert find_calibration(places(), "another model") is None
    (model / "dynts" / "calibration.safetensors").write_text("no tensors")
    assert find_calibration(places(), "a model") is None


def test_a_file_of_an_earlier_release_is_made_anew(model):
    path, places = model / CALIBRATION_FILE, list(calibration_files(model, "a model", beside=True))
    path.parent.mkdir()
    old = {"format_version": "1", "fingerprint": "a model", "num_tokens": "30"}
    save_file({name: torch.zeros(1) for name in ("mean", "covariance")}, path, metadata=old)
    assert find_calibration(places, "a model") is None
    assert keep_calibration(places, some()) == path
    assert same(load_calibration(path), some())


def test_a_folder_that_cannot_be_written_is_passed_over(model, tmp_path):
    (model / "dynts").write_text("a file where a folder should be")
    path = keep_calibration(calibration_files(model, "a model", beside=True), some())
    assert path == tmp_path / "cache" / "sgl_dynts" / "a model.safetensors"
    found = find_calibration(calibration_files(model, "a model", beside=False), "a model")
    assert found is not None
    assert found[1] == path


def test_a_text_ships():
    assert len(shipped_text().split()) > 5000
