"""The authors' checkpoints become predictor files and back, bit for bit."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl_dynts.checkpoint import find_predictor
from sgl_dynts.config import PAPER_CONFIG
from sgl_dynts.training.convert import main

SHAPES = {"is_head.0.weight": (4, 6), "is_head.2.weight": (3, 4), "is_head.4.weight": (1, 3)}


@pytest.fixture
def head():
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(s, generator=generator).bfloat16() for name, s in SHAPES.items()}


@pytest.fixture
def checkpoint(tmp_path, head):
    """A fine-tuned model in two shards, its head split over both."""
    folder = tmp_path / "fine-tuned"
    folder.mkdir()
    shards = {
        "a.safetensors": {
            "lm_head.weight": torch.zeros(5, 6),
            "is_head.0.weight": head["is_head.0.weight"],
        },
        "b.safetensors": {name: head[name] for name in list(SHAPES)[1:]},
    }
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_there_and_back_every_bit_is_the_same(tmp_path, checkpoint, head):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    assert main([str(checkpoint), str(ours)]) == 0
    assert main([str(ours), str(theirs), "--to-authors"]) == 0
    back = load_file(theirs)
    assert set(back) == set(head)
    for name, weight in head.items():
        assert back[name].dtype == torch.bfloat16
        assert torch.equal(back[name].view(torch.int16), weight.view(torch.int16))


def test_a_predictor_file_says_the_same_after_both_ways(tmp_path, checkpoint):
    first, theirs, second = (tmp_path / f"{name}.safetensors" for name in ("first", "theirs", "second"))
    assert main([str(checkpoint), str(first), "--base-model", "m"]) == 0
    assert main([str(first), str(theirs), "--to-authors"]) == 0
    assert main([str(theirs), str(second), "--base-model", "m"]) == 0
    assert find_predictor(tmp_path, first).header == find_predictor(tmp_path, second).header
    before, after = load_file(first), load_file(second)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_header_says_what_was_given_and_else_the_papers_windows(tmp_path, checkpoint):
    output = tmp_path / "ours.safetensors"
    assert main([str(checkpoint), str(output), "--base-model", "org/model", "--budget", "4000"]) == 0
    header = find_predictor(tmp_path, named=output).header
    assert (header.base_model, header.target, header.hidden_size) == ("org/model", "answer", 6)
    assert header.windows == replace(PAPER_CONFIG, budget=4000)


def test_windows_that_cannot_be_are_refused_and_nothing_is_written(tmp_path, checkpoint, capsys):
    output = tmp_path / "ours.safetensors"
    assert main([str(checkpoint), str(output), "--budget", "10"]) == 1
    assert "budget" in capsys.readouterr().err
    assert not output.exists()


def test_a_folder_without_a_predictor_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "out.safetensors")]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_a_header_for_the_authors_layout_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["a", str(tmp_path / "b"), "--to-authors", "--budget", "4000"])
    assert "budget" in capsys.readouterr().err
