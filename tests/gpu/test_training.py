"""A ledger model is trained, read by a predictor's fit and measured on a GPU."""

from dataclasses import replace

import pytest

from benchmark.ledgers import fit_importance, train
from benchmark.ledgers.fit_model import Kind, Stage
from sgl_dynts.checkpoint import find_predictor
from sgl_dynts.demo.ledger import MAX_STEPS

DEVICE = "cuda"


@pytest.fixture
def small(monkeypatch):
    """The large size with all its parts made small; the ledgers stay wide."""
    large = train.SIZES["large"]
    recipe = replace(
        large.recipe,
        tokens_per_step=512,
        stages=(Stage((Kind(6, brief=True, wide=True), Kind(6, wide=True))),),
    )
    size = replace(
        large,
        shape=replace(large.shape, hidden_size=128, intermediate_size=128, num_layers=2),
        recipe=recipe,
        fit=replace(large.fit, epochs=1),
        num_problems=3,
        num_steps=MAX_STEPS + 1,
    )
    monkeypatch.setitem(train.SIZES, "large", size)
    monkeypatch.setattr(fit_importance, "NUM_HELD_OUT", 1)


def test_training_fit_and_evaluation_run_on_a_gpu(small, tmp_path, capsys):
    words = ["--size", "large", "--device", DEVICE, "--steps", "3", "--num-problems", "2"]
    train.main(["--output", str(tmp_path), *words])
    header = find_predictor(tmp_path).header
    assert (header.base_model, header.hidden_size) == ("sgl-dynts-ledger-large", 128)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    measured = {row[0]: row[1] for row in rows if len(row) > 1 and row[0] in ("full", "dynts", "oracle")}
    assert measured == {"full": "2", "dynts": "2", "oracle": "2"}
