"""Forced tokens under policies' windows, on a tiny random model."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmark.harness.tiny_models import config_of, word_tokenizer, write_random_weights
from benchmark.likelihood import main
from sgl_dynts.checkpoint import PredictorHeader, save_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.policies import ModelFacts, needing, policies
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.forced.full_cache import FullCache, Text
from sgl_dynts.training.forced.measures import TextMeans, kinds_of, likelihood, summarize
from sgl_dynts.training.forced.reader import Reader

WINDOWS = DynTSConfig(40, 10, 0.5)
NUM_TOKENS, QUESTION = 90, 7
APART = ("full", "predictor", "calibrated", "hybrid", "triattention_per_head", "sepllm")
DROPPING = [name for name in policies() if name not in APART]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_random_weights(path, config_of("qwen3", head_dim=32), 1)
    word_tokenizer(256).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reader(folder) -> Reader:
    return Reader.load(folder, num_queries=8)


@pytest.fixture(scope="module")
def full(reader) -> FullCache:
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(8, 256, (NUM_TOKENS,), generator=draw).tolist()
    return FullCache(reader, Text(tokens, QUESTION))


def facts_of(reader: Reader, queries=()) -> ModelFacts:
    return ModelFacts(
        num_layers=reader.num_layers, num_kv_heads=reader.num_kv_heads, queries=queries, period=15
    )


def test_the_full_cache_is_the_model_itself(full, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = model(torch.tensor([full.text.tokens[:-1]])).logits[0]
    torch.testing.assert_close(full.reader.logits(full.hidden), wanted, rtol=1e-3, atol=1e-3)


def test_the_window_is_a_mask_over_the_full_text(full, folder):
    """With the newest kept, each token sees the question and what no compaction before it dropped."""
    states = full.read_under({"window": policies()["window"]()}, WINDOWS)
    assert states is not None
    keep, local, question = 15, 10, QUESTION
    selection, held, dropped = keep - question, set(range(40)), []
    for token in range(40, NUM_TOKENS - 1):
        if len(held) == 40:
            own = sorted(one for one in held if one >= question)
            gone = set(own[: -selection - local])
            dropped.append((token, gone))
            held -= gone
        held.add(token)
    assert len(dropped) == 4
    mask = torch.ones(NUM_TOKENS - 1, NUM_TOKENS - 1).tril().bool()
    for token, gone in dropped:
        mask[token:, sorted(gone)] = False
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = model.model(torch.tensor([full.text.tokens[:-1]]), attention_mask=mask[None, None])
    torch.testing.assert_close(states[0], wanted.last_hidden_state[0, 40:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", DROPPING)
def test_a_policy_alone_and_among_others_reads_the_same(full, reader, name):
    facts = facts_of(reader)
    own = policies()[name].build(facts)
    alone = full.read_under({name: own}, WINDOWS)
    among = full.read_under(
        {"first": policies()["window"](), name: own, "h2o": policies()["h2o"]()}, WINDOWS
    )
    assert alone is not None
    assert among is not None
    torch.testing.assert_close(alone[0], among[1], rtol=1e-3, atol=1e-3)
    if name != "window":
        assert (among[0] - among[1]).abs().max() > 0.01


def test_statistics_are_those_of_queries_before_they_are_rotated(reader, folder, full):
    (first, *_) = reader.calibrate(full.text.tokens, chunk=50)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen = []
    layer = model.model.layers[0].self_attn
    layer.q_norm.register_forward_hook(lambda _module, _args, out: seen.append(out[0]))
    with torch.inference_mode():
        for start in (0, 50):
            model(torch.tensor([full.text.tokens[start : start + 50]]))
    queries = torch.cat(seen)
    torch.testing.assert_close(first.mean, queries.mean(0), rtol=1e-3, atol=1e-4)
    covariance = torch.cov(queries[:, 0].T, correction=0)
    torch.testing.assert_close(first.covariance[0], covariance, rtol=1e-3, atol=1e-4)


def test_a_text_too_short_for_a_compaction_has_no_states(reader):
    short = FullCache(reader, Text(list(range(8, 48)), QUESTION))
    assert short.read_under({"window": policies()["window"]()}, WINDOWS) is None


def test_likelihood_by_hand():
    full = torch.tensor([[0.0, math.log(3.0)], [math.log(3.0), 0.0]])
    found = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    result = likelihood(found, full, torch.tensor([1, 0]))
    assert result.nll.tolist() == pytest.approx([math.log(2), math.log(1 + math.e)])
    kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert result.kl[0].item() == pytest.approx(kl)
    assert result.agrees.tolist() == [0.0, 0.0]  # equal logits: the first counts as the likeliest
    assert result.means().agreement == 0.0


def test_differences_are_paired():
    own = [TextMeans(1.0, 0.1, 0.9), TextMeans(5.0, 0.3, 0.7)]
    window = [TextMeans(1.5, 0.1, 0.9), TextMeans(5.7, 0.3, 0.7)]
    cell = summarize(own, window)
    assert cell["delta_nll"] == pytest.approx(-0.6)
    assert cell["delta_nll_se"] == pytest.approx(0.1)
    assert (cell["n"], cell["nll"], cell["kl"], cell["agreement"]) == (2, 3.0, 0.2, 0.8)


def test_one_kind_needs_no_sum():
    assert kinds_of(["a", "a"]) == ["a"]
    assert kinds_of(["a", "b", "a"]) == ["a", "b", "all"]


def words(seed: int) -> str:
    draw = torch.Generator().manual_seed(seed)
    return " ".join(f"w{number}" for number in torch.randint(8, 256, (120,), generator=draw).tolist())


@pytest.fixture
def texts(tmp_path):
    paths = [tmp_path / name for name in ("one-0.txt", "one-1.txt", "other-0.txt")]
    for seed, path in enumerate(paths):
        path.write_text(words(seed))
    return [str(path) for path in paths]


def test_the_command_writes_a_cell_for_each_policy_budget_and_kind(folder, texts, tmp_path, capsys):
    out = tmp_path / "likelihood.json"
    main(
        [
            *("--model", str(folder), "--texts", *texts, "--calibration-text", texts[0]),
            *("--policies", "random_per_head", "calibrated", "--budgets", "40", "60"),
            *("--local-window", "10", "--keep-ratio", "0.5", "--tokens", "100", "--out", str(out)),
            *("--question-len", "7"),
        ]
    )
    cells = json.loads(out.read_text())
    assert len(cells) == 2 * 3 * 4  # budgets, kinds with their sum, policies with full and window
    full = [cell for cell in cells if cell["policy"] == "full"]
    assert all(cell["kl"] == 0 and cell["agreement"] == 1 for cell in full)
    assert {(cell["kind"], cell["n"]) for cell in cells} == {("one", 2), ("other", 1), ("all", 3)}
    own = [cell for cell in cells if cell["policy"] == "calibrated"]
    assert all(cell["kl"] > 0 for cell in own)
    assert "| 40 | 10 | all, n = 3 | `calibrated` |" in capsys.readouterr().out
    assert out.with_suffix(".png").stat().st_size > 0


def test_predictors_of_several_targets_have_a_row_each(folder, texts, tmp_path, capsys):
    out, width = tmp_path / "likelihood.json", AutoConfig.from_pretrained(folder).hidden_size
    words = ["--model", str(folder), "--texts", texts[0], "--policies", "predictor", "--budgets", "40"]
    words += ["--local-window", "10", "--keep-ratio", "0.5", "--tokens", "80", "--out", str(out)]
    paths = [str(tmp_path / f"{target}.safetensors") for target in ("future_10", "deletion_10")]
    for path, target in zip(paths, ("future_10", "deletion_10"), strict=True):
        torch.manual_seed(len(target))
        predictor = ImportancePredictor(width, (8, 4))
        save_predictor(Path(path), predictor, PredictorHeader(width, "tiny", target, WINDOWS))
    main([*words, "--predictor", *paths])
    cells = json.loads(out.read_text())
    for path in paths:
        main([*words, "--predictor", path])
    alone = json.loads(out.read_text())
    measures = [{cell["target"]: cell["kl"] for cell in some} for some in (cells, alone)]
    assert measures[0] == pytest.approx(measures[1], rel=1e-3)
    assert measures[0]["future_10"] != pytest.approx(measures[0]["deletion_10"], rel=1e-3)
    with pytest.raises(SystemExit, match="another was fitted to future_10, too"):
        main([*words, "--predictor", paths[0], paths[0]])
    found = [(cell["policy"], cell["target"]) for cell in cells]
    of_predictors = [("predictor", "future_10"), ("predictor", "deletion_10")]
    assert sorted(found, key=str) == sorted([("full", None), ("window", None), *of_predictors], key=str)
    assert "| `predictor` fitted to `deletion_10` |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "5000"], "fewer than --tokens 5000"),
        (["--budgets", "110"], "ends before the first compaction"),
        (["--policies", "predictor"], "--policies predictor"),
        (["--policies", "calibrated"], "--calibration-text"),
        (["--budgets", "40", "50", "60", "--local-window", "10", "12"], "--local-window"),
        (["--local-window", "50"], "local_window"),
    ],
)
def test_what_cannot_be_measured_is_refused(folder, texts, tmp_path, words, message):
    usual = {"--tokens": "100", "--budgets": "40", "--local-window": "10", "--policies": "random"}
    given = {word for word in words if word.startswith("--")}
    more = [part for name, value in usual.items() if name not in given for part in (name, value)]
    with pytest.raises(SystemExit, match=message):
        main(["--model", str(folder), "--texts", *texts, *more, *words, "--out", str(tmp_path / "x")])


def test_policies_that_need_calibration_are_known():
    assert needing("calibration") == ("calibrated", "hybrid", "triattention_per_head")
