"""Whether a predictor is worse than a policy without training, on a tiny random model."""

import re
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sgl_dynts.config import DynTSConfig
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.comparison import Comparison, compare, texts_to_read, windows_for
from sgl_dynts.training.forced.measures import likelihood
from tests.unit.training.test_importance import SIZES
from tests.unit.training.test_pipeline import TRACES

CONFIG = DynTSConfig(40, 12, 0.5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    made = LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.4))
    return made.eval()


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(4)
    return ImportancePredictor(SIZES["hidden_size"], (16, 8)).requires_grad_(False)


def test_kl_is_of_the_tokens_behind_the_first_compaction(model, predictor):
    """With the newest kept, a token sees the question and what no compaction before it dropped."""
    trace = TRACES[0]
    found = compare(model, predictor, TRACES[1:], [trace], CONFIG)
    ids = torch.tensor([*trace.prompt_ids, *trace.output_ids])[: 40 + 4 * CONFIG.period]
    kept, length, question = CONFIG.keep_len, len(ids), len(trace.prompt_ids)
    mask, held = torch.ones(length, length).tril().bool(), set(range(40))
    for token in range(40, length):
        if len(held) == 40:
            own = sorted(one for one in held if one >= question)
            gone = own[: len(own) - (kept - question) - 12]
            held -= set(gone)
            mask[token:, gone] = False
        held.add(token)
    with torch.inference_mode():
        full = model(ids[None]).logits[0, 40:-1]
        windowed = model(ids[None], attention_mask=mask[None, None]).logits[0, 40:-1]
    wanted = likelihood(windowed, full, ids[41:]).means().kl
    assert found.windows == CONFIG
    assert found.kl["window"] == pytest.approx(wanted, rel=1e-3)
    assert wanted > 0.01
    assert found.difference == pytest.approx(found.kl["predictor"] - found.kl["calibrated"])
    assert (found.num_texts, found.error) == (1, None)


def test_differences_are_paired_over_texts(model, predictor):
    both = compare(model, predictor, TRACES[2:], TRACES[:2], CONFIG)
    single = [compare(model, predictor, TRACES[2:], [trace], CONFIG).difference for trace in TRACES[:2]]
    assert both.num_texts == 2
    assert both.difference == pytest.approx(sum(single) / 2, rel=1e-4)
    assert both.error == pytest.approx(abs(single[0] - single[1]) / 2, rel=1e-3)


def test_windows_are_scaled_to_traces_that_are_too_short_for_them():
    assert windows_for(CONFIG, 55) == CONFIG  # more than 40 and a period of 14
    assert windows_for(CONFIG, 54) == DynTSConfig(27, 8, 0.5)
    assert windows_for(DynTSConfig(5000, 2000, 0.4), 400) == DynTSConfig(200, 80, 0.4)


def test_each_text_has_its_turn_and_short_traces_are_left_out():
    def made(problem, length):
        return replace(TRACES[0], problem=problem, output_ids=[1] * (length - 5))

    given = [made(*one) for one in (("a", 40), ("a", 39), ("b", 30), ("c", 19), ("a", 38), ("b", 20))]
    found = [(trace.problem, trace.length) for trace in texts_to_read(given)]
    assert found == [("a", 40), ("b", 30), ("a", 39), ("b", 20), ("a", 38)]
    assert len(texts_to_read([made(str(number), 40) for number in range(9)])) == 8


def test_what_cannot_be_compared_says_why(predictor):
    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="model_type='gpt2' is not simulated, only llama, qwen2, qwen3"):
        compare(other, predictor, TRACES, TRACES, CONFIG)


@pytest.mark.parametrize(
    ("difference", "error", "verdict"),
    [
        (0.02, 0.004, r"^WORSE than `calibrated` by 0.0200 ± 0.0040 nats per token: do not ship it"),
        (0.02, 0.03, r"^WORSE .* \(which may be chance: hold out more\): do not ship it"),
        (0.02, None, r"^WORSE than `calibrated` by 0.0200 nats per token \(which may"),
        (-0.02, 0.004, r"^better than `calibrated` by 0.0200 ± 0.0040 nats per token$"),
        (-0.02, 0.03, r"^better than .* which may be chance: hold out more$"),
    ],
)
def test_the_verdict_names_the_difference_and_whether_it_is_clear(difference, error, verdict):
    kl = {"window": 0.1, "calibrated": 0.05, "predictor": 0.05 + difference}
    found = Comparison(CONFIG, 8, kl, difference, error)
    assert found.is_worse == (difference > 0)
    assert "8 held-out texts (budget 40, local_window 12, keep_ratio 0.5): window 0.1000" in str(found)
    assert re.search(verdict, found.verdict)
