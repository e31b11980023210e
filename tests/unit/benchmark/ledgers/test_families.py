"""In each family the demo's model is transformers' own; training names what it made."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmark.ledgers import card, evaluate, fit_importance, train
from benchmark.ledgers.export import load_model_folder, save_model_folder
from benchmark.ledgers.model import FAMILIES, DemoModel, ModelShape
from benchmark.ledgers.sizes import SIZES
from sgl_dynts.checkpoint import find_predictor
from sgl_dynts.demo.ledger import vocabulary

CLASSES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_what_transformers_computes(tmp_path, family):
    torch.manual_seed(0)
    model = DemoModel(ModelShape(len(vocabulary()), family))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter += 0.3 * torch.randn_like(parameter)
    save_model_folder(tmp_path, model, training_minutes=1.0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(theirs).__name__ == CLASSES[family]
    tokens = torch.randint(0, len(vocabulary()), (2, 60))
    with torch.no_grad():
        ours = load_model_folder(tmp_path)(tokens)
        torch.testing.assert_close(ours, theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.fixture
def quick(monkeypatch):
    """Training that learns nothing."""
    monkeypatch.setattr(train, "train", lambda *_: None)
    monkeypatch.setattr(fit_importance, "NUM_HELD_OUT", 1)
    for name, size in SIZES.items():
        small = replace(size, num_problems=2, fit=replace(size.fit, epochs=1))
        monkeypatch.setitem(train.SIZES, name, small)
    monkeypatch.setattr(train, "_measure", lambda *_: ({}, {}))


@pytest.mark.parametrize(
    ("words", "base_model", "target"),
    [
        (("--family", "llama"), "sgl-dynts-demo-ledger-llama", "future_128"),
        (("--seed", "2"), "sgl-dynts-demo-ledger", "future_128"),
        (("--target", "answer"), "sgl-dynts-demo-ledger", "answer"),
        (("--size", "large"), "sgl-dynts-ledger-large", "future_128"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_what_does_not_ship_is_named_and_gets_no_card(quick, tmp_path, words, base_model, target):
    train.main(["--output", str(tmp_path), *words])
    header = find_predictor(tmp_path).header
    assert (header.base_model, header.target) == (base_model, target)
    assert not (tmp_path / "README.md").exists()


def test_another_seed_is_another_model(quick, tmp_path):
    weights = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        train.main(["--output", str(folder), "--seed", seed, "--target", "answer"])
        weights.append(load_model_folder(folder).model.embed_tokens.weight)
    assert not torch.equal(*weights)


def test_a_card_is_the_shipped_one_with_new_figures(tmp_path):
    one = evaluate.Report("full", 20, 19, 18, 0.7, 0.99, 374.5, 682, 616.0, 1.0)
    size = SIZES["demo"]
    figures = card.Figures(size.recipe, size.fit, 3.2, 1.6, {"full": one}, {"full": one})
    card.write_card(tmp_path / "README.md", figures)
    text = (tmp_path / "README.md").read_text()
    assert text.count("| full | 95.0 | 70.0 to 99.0 | 90.0 | 374 | 682 | 616 |") == 2
    assert "1100 steps, seed 1, 3 minutes on one CPU thread" in text
    assert "epochs, seed 1,\n2 minutes. Default windows" in text
    assert "first 20 problems" in text
    assert "How this copy was made" not in text
