"""Predictor files: what is written is read, the authors' files are found, bad ones are named."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl_dynts.checkpoint import (
    AUTHOR_LAYER_NAMES,
    LAYER_NAMES,
    MAX_INNER_SIZE,
    PREDICTOR_FILE,
    PredictorHeader,
    check_scores,
    find_predictor,
    find_predictor_if_any,
    load_predictor,
    save_predictor,
)
from sgl_dynts.config import PAPER_CONFIG, DynTSConfig
from sgl_dynts.predictor import ImportancePredictor

HEADER = PredictorHeader(
    hidden_size=6, base_model="org/model", target="trace", windows=DynTSConfig(64, 16, 0.4)
)
METADATA = {
    "format_version": "1",
    "hidden_size": "6",
    "base_model": "org/model",
    "target": "trace",
    "budget": "64",
    "local_window": "16",
    "keep_ratio": "0.4",
}
SHAPES = [(4, 6), (3, 4), (1, 3)]


def weights(names, shapes=SHAPES) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) for name, shape in zip(names, shapes, strict=False)}


def write(path: Path, names=LAYER_NAMES, shapes=SHAPES, **changed: str | None) -> Path:
    """Write a predictor file with some header fields changed or, if None, left out."""
    metadata = {k: v for k, v in (METADATA | changed).items() if v is not None}
    path.parent.mkdir(exist_ok=True)
    save_file(weights(names, shapes), path, metadata=metadata)
    return path


def refuses(message: str):
    return pytest.raises(ValueError, match=re.escape(message))


def test_a_saved_predictor_loads_as_it_was(tmp_path):
    predictor = ImportancePredictor(6, (4, 3)).to(torch.bfloat16)
    save_predictor(tmp_path / PREDICTOR_FILE, predictor, HEADER)
    source = find_predictor(tmp_path)
    loaded = load_predictor(source)
    assert source.header == HEADER
    assert source.header.windows == DynTSConfig(64, 16, 0.4)
    hidden = torch.randn(5, 6)
    assert torch.equal(loaded(hidden), predictor(hidden))
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_a_file_holds_three_tensors_and_a_readable_header(tmp_path):
    path = tmp_path / PREDICTOR_FILE
    save_predictor(path, ImportancePredictor(6, (4, 3)), HEADER)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(path).items()}
    assert shapes == dict(zip(LAYER_NAMES, SHAPES, strict=True))
    header_len = int.from_bytes(path.read_bytes()[:8], "little")
    assert json.loads(path.read_bytes()[8 : 8 + header_len])["__metadata__"] == METADATA


def test_a_predictor_can_be_loaded_by_its_path(tmp_path):
    assert load_predictor(write(tmp_path / "any.safetensors")).inner_sizes == (4, 3)


def test_a_header_for_another_width_is_not_written(tmp_path):
    with refuses("header says hidden_size=7, the predictor has 6"):
        save_predictor(tmp_path / "p", ImportancePredictor(6, (4, 3)), replace(HEADER, hidden_size=7))


def test_the_named_predictor_wins_over_the_models_own(tmp_path):
    write(tmp_path / PREDICTOR_FILE, target="own")
    other = tmp_path / "other"
    other.mkdir()
    file = write(other / PREDICTOR_FILE, target="named")
    assert find_predictor(tmp_path).header.target == "own"
    assert find_predictor(tmp_path, file).header.target == "named"
    assert find_predictor(tmp_path, other).header.target == "named"


def test_the_models_predictor_file_wins_over_tensors_in_its_checkpoint(tmp_path):
    save_file(weights(AUTHOR_LAYER_NAMES), tmp_path / "model.safetensors")
    assert find_predictor(tmp_path).tensor_names == AUTHOR_LAYER_NAMES
    write(tmp_path / PREDICTOR_FILE)
    assert find_predictor(tmp_path).tensor_names == LAYER_NAMES


def authors_tensors() -> dict[str, torch.Tensor]:
    return {"model.embed_tokens.weight": torch.zeros(2, 6)} | weights(AUTHOR_LAYER_NAMES)


def check_authors(source, tensors) -> None:
    loaded = load_predictor(source)
    for weight, name in zip(loaded.parameters(), AUTHOR_LAYER_NAMES, strict=True):
        assert torch.equal(weight, tensors[name])
    assert (source.header.hidden_size, source.header.windows) == (6, PAPER_CONFIG)
    assert source.header.target == "answer"


@pytest.mark.parametrize("named", [False, True])
def test_the_authors_predictor_is_found_in_a_checkpoint_of_one_file(tmp_path, named):
    tensors = authors_tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    check_authors(find_predictor(Path("/nowhere") if named else tmp_path, tmp_path), tensors)


def test_the_authors_predictor_is_found_in_a_named_file(tmp_path):
    tensors = authors_tensors()
    save_file(tensors, tmp_path / "x.safetensors")
    check_authors(find_predictor(Path("/nowhere"), tmp_path / "x.safetensors"), tensors)


@pytest.mark.parametrize("with_index", [True, False])
def test_the_authors_predictor_is_found_across_shards(tmp_path, with_index):
    tensors = authors_tensors()
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        shard = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(shard, tmp_path / file)
    if with_index:
        index = json.dumps({"weight_map": weight_map})
        (tmp_path / "model.safetensors.index.json").write_text(index)
    source = find_predictor(tmp_path)
    assert len(set(source.tensor_files)) == 2
    check_authors(source, tensors)


def test_the_authors_predictor_must_be_complete(tmp_path):
    tensors = authors_tensors()
    del tensors["is_head.2.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with refuses(f"{tmp_path}: missing tensors is_head.2.weight beside the other is_head.*"):
        find_predictor(tmp_path)


@pytest.mark.parametrize("with_index", [True, False])
def test_a_model_without_a_predictor_says_how_to_name_one(tmp_path, with_index):
    save_file({"model.norm.weight": torch.ones(6)}, tmp_path / "model.safetensors")
    if with_index:
        index = json.dumps({"weight_map": {"model.norm.weight": "model.safetensors"}})
        (tmp_path / "model.safetensors.index.json").write_text(index)
    with refuses(
        f"no predictor: --dynts-predictor is not given, {tmp_path} holds no {PREDICTOR_FILE} and its "
        "checkpoint has no is_head.* tensors. Train one for this model, or name one with "
        "--dynts-predictor PATH"
    ):
        find_predictor(tmp_path)


def test_a_named_folder_without_a_predictor_is_refused(tmp_path):
    with refuses(
        f"--dynts-predictor {tmp_path}: the folder holds neither {PREDICTOR_FILE} nor a checkpoint "
        "with is_head.* tensors; name the predictor file itself"
    ):
        find_predictor(tmp_path, tmp_path)


def test_a_path_that_does_not_exist_is_refused_even_beside_a_good_predictor(tmp_path):
    write(tmp_path / PREDICTOR_FILE)
    gone = tmp_path / "gone"
    with refuses(
        f"--dynts-predictor {gone}: no such file or folder; name a predictor file, or a folder that "
        f"holds {PREDICTOR_FILE}"
    ):
        find_predictor(tmp_path, gone)


@pytest.mark.parametrize(
    "content", [b"", b"not a predictor", b"\x80\x04" * 50], ids=["empty", "text", "pickle"]
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "predictor"
    path.write_bytes(content)
    with refuses(f"{path}: not a readable safetensors file ("):
        find_predictor(tmp_path, path)


def test_a_torn_file_is_refused(tmp_path):
    path = write(tmp_path / PREDICTOR_FILE)
    path.write_bytes(path.read_bytes()[:-20])
    with refuses(f"{path}: not a readable safetensors file ("):
        find_predictor(tmp_path)


@pytest.mark.parametrize(("version", "shown"), [("2", "'2'"), (None, "None")])
def test_another_format_version_is_refused(tmp_path, version, shown):
    path = write(tmp_path / PREDICTOR_FILE, format_version=version)
    with refuses(
        f"{path}: predictor format_version is {shown}, this release reads '1'; save the predictor "
        "again with a matching release"
    ):
        find_predictor(tmp_path)


def test_missing_tensors_are_named(tmp_path):
    path = write(tmp_path / PREDICTOR_FILE, names=LAYER_NAMES[:1])
    message = "missing tensors layers.1.weight, layers.2.weight; the file is not complete"
    with refuses(f"{path}: {message}"):
        find_predictor(tmp_path)


@pytest.mark.parametrize("field", sorted(set(METADATA) - {"format_version"}))
def test_a_missing_header_field_is_named(tmp_path, field):
    path = write(tmp_path / PREDICTOR_FILE, **{field: None})
    with refuses(f"{path}: header lacks {field}; save the predictor again"):
        find_predictor(tmp_path)


def test_all_missing_header_fields_are_named(tmp_path):
    path = write(tmp_path / PREDICTOR_FILE, target=None, budget=None)
    with refuses(f"{path}: header lacks target, budget; save the predictor again"):
        find_predictor(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", "six", "invalid literal for int() with base 10: 'six'"),
        ("budget", "64.5", "invalid literal for int() with base 10: '64.5'"),
        ("keep_ratio", "much", "could not convert string to float: 'much'"),
        ("keep_ratio", "1.0", "keep_ratio=1.0 must lie between 0 and 1, both excluded"),
        ("keep_ratio", "nan", "keep_ratio=nan must lie between 0 and 1, both excluded"),
        ("local_window", "0", "local_window=0 must lie between 1 and 2147483648"),
        ("budget", "16", "budget=16 must be larger than local_window=16"),
    ],
)
def test_a_header_with_a_bad_value_is_refused(tmp_path, field, value, message):
    path = write(tmp_path / PREDICTOR_FILE, **{field: value})
    with refuses(f"{path}: bad header: {message}"):
        find_predictor(tmp_path)


@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 7), (3, 4), (1, 3)],
        [(4, 6), (3, 5), (1, 3)],
        [(4, 6), (3, 4), (2, 3)],
        [(4, 6), (3, 4), (1, 4)],
        [(4, 6), (3, 4), (3,)],
        [(6,), (3, 4), (1, 3)],
        [(4, 6, 1), (3, 4), (1, 3)],
        [(MAX_INNER_SIZE + 1, 6), (1, MAX_INNER_SIZE + 1), (1, 1)],
    ],
)
def test_tensors_that_do_not_chain_up_are_refused_by_their_shapes(tmp_path, shapes):
    path = write(tmp_path / PREDICTOR_FILE, shapes=shapes)
    shown = [list(shape) for shape in shapes]
    with refuses(
        f"{path}: tensor shapes {shown} are not [h1, 6], [h2, h1], [1, h2]; the file is not a "
        "predictor for the hidden size in its header"
    ):
        load_predictor(find_predictor(tmp_path))


@pytest.mark.parametrize(
    "file", ["../outside.safetensors", "/outside.safetensors", "sub/x.safetensors", ".."]
)
def test_a_path_out_of_the_named_folder_is_not_followed(tmp_path, file):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(authors_tensors(), tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(authors_tensors(), file)}))
    with refuses(f"{index}: {file!r} is not the name of a file beside it; correct the index"):
        find_predictor(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"weight_map": 3}', '{"weight_map": {"is_head.0.weight": 3}}', "[" * 100_000]
)
def test_an_index_of_another_form_is_refused(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with refuses(f"{index}: not an index of safetensors files ("):
        find_predictor(tmp_path)


def test_an_index_that_names_a_tensor_its_file_lacks_is_refused(tmp_path):
    save_file({"other": torch.ones(2)}, tmp_path / "x.safetensors")
    index = {"weight_map": dict.fromkeys(authors_tensors(), "x.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with refuses(f"{tmp_path / 'x.safetensors'}: no tensor is_head.0.weight that can be read ("):
        find_predictor(tmp_path)


@pytest.mark.parametrize(
    "spoil", [lambda weight: weight.fill_(torch.nan), lambda weight: weight.to(torch.int64)]
)
def test_weights_that_give_no_scores_are_refused(tmp_path, spoil):
    tensors = authors_tensors()
    tensors["is_head.2.weight"] = spoil(tensors["is_head.2.weight"])
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"not a finite number|not of one float type"):
        load_predictor(find_predictor(tmp_path))


def test_a_layer_of_width_0_is_refused(tmp_path):
    path = tmp_path / "predictor.safetensors"
    save_file(weights(LAYER_NAMES, [(0, 6), (3, 0), (1, 3)]), path, metadata=METADATA)
    with pytest.raises(ValueError, match="have a width of 0, which scores nothing"):
        load_predictor(find_predictor(tmp_path, path))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e30, "its scores are not finite numbers"),
        (0.0, "every token scores"),
        (1e-30, "every token scores"),
    ],
)
def test_a_predictor_that_tells_no_token_from_another_is_refused(value, message):
    predictor = ImportancePredictor(6, (4, 3))
    for weight in predictor.parameters():
        torch.nn.init.constant_(weight, value)
    with pytest.raises(ValueError, match=f"^a.safetensors: {message}"), torch.inference_mode():
        check_scores(predictor, "a.safetensors")


def test_a_useful_predictor_is_taken_at_any_size_of_hidden_states():
    torch.manual_seed(1)
    predictor = ImportancePredictor(6, (4, 3))
    for scale in (1.0, 30.0, torch.rand(6)):
        with torch.inference_mode():
            check_scores(predictor.bfloat16(), "a.safetensors", scale)


@pytest.mark.parametrize("to", ["nowhere", PREDICTOR_FILE, "/dev/zero", "."])
def test_a_predictor_s_place_that_holds_no_file_is_not_taken_for_an_empty_one(tmp_path, to):
    (tmp_path / PREDICTOR_FILE).parent.mkdir()
    (tmp_path / PREDICTOR_FILE).symlink_to(tmp_path / to)
    with pytest.raises(ValueError, match="no regular file that can be read"):
        find_predictor_if_any(tmp_path)


@pytest.mark.parametrize("place", ["named", "beside", "among the weights", "index"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, place):
    pipe = tmp_path / (PREDICTOR_FILE if place == "beside" else "pipe.safetensors")
    pipe.parent.mkdir(exist_ok=True)
    os.mkfifo(pipe)
    if place == "index":
        index = {"weight_map": dict.fromkeys(AUTHOR_LAYER_NAMES, pipe.name)}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    message = "no regular file that can be read" if place == "beside" else "it is no regular file"
    with pytest.raises(ValueError, match=message):
        find_predictor(tmp_path, pipe if place == "named" else None)
