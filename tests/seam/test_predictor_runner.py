"""The predictor listens to the served model's logits processor, on its device and in its dtype."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sglang.srt.layers.layernorm import Gemma3RMSNorm, GemmaRMSNorm, RMSNorm

from sgl_dynts.checkpoint import PREDICTOR_FILE, load_predictor
from sglang_dynts.forward.device_state import DeviceState, on_runner
from sglang_dynts.forward.predictor_runner import install_predictor
from sglang_dynts.forward.weight_updates import size_of_states


class LogitsProcessor(torch.nn.Module):
    """Takes what SGLang's takes."""

    def forward(self, input_ids, hidden, lm_head, forward_batch):
        return hidden.sum()


class Runner:
    """As much of a model runner as the predictor touches."""

    def __init__(self, dtype: torch.dtype = torch.float32, hidden_size: int = 64) -> None:
        self.is_draft_worker = False
        self.dtype = dtype
        self.device = "cpu"
        self.model_config = SimpleNamespace(hidden_size=hidden_size)
        self.model: Any = torch.nn.Module()
        self.model.load_weights = dict
        self.logits_processor = LogitsProcessor()
        self.model.logits_processor = self.logits_processor

    def forward(self, hidden: torch.Tensor, slots: list[int]) -> None:
        batch = SimpleNamespace(out_cache_loc=torch.tensor(slots))
        self.logits_processor(None, hidden, None, batch)


def test_every_forward_scores_its_tokens_as_the_trained_predictor_does(serve, model):
    serve("--attention-backend", "dynts")
    runner = Runner()
    install_predictor(None, runner)
    state = on_runner(runner).state = DeviceState(5, torch.zeros(1, 1))
    hidden = torch.randn(2, 64)
    runner.forward(hidden, [3, 1])
    wanted = load_predictor(model / PREDICTOR_FILE)(hidden)
    assert torch.equal(state.scores.scores[[3, 1]], wanted)


def test_the_predictor_stays_outside_the_served_module_tree(serve):
    serve("--attention-backend", "dynts")
    runner = Runner()
    install_predictor(None, runner)
    assert list(runner.model.parameters()) == []


def test_a_half_precision_model_is_scored_in_bfloat16(serve, model):
    serve("--attention-backend", "dynts")
    runner = Runner(torch.float16)
    install_predictor(None, runner)
    state = on_runner(runner).state = DeviceState(2, torch.zeros(1, 1))
    hidden = torch.randn(1, 64).half()
    runner.forward(hidden, [1])
    wanted = load_predictor(model / PREDICTOR_FILE).to(torch.bfloat16)(hidden)
    assert torch.equal(state.scores.scores[[1]], wanted)


def test_a_model_of_another_width_is_refused(serve):
    serve("--attention-backend", "dynts")
    with pytest.raises(ValueError, match=r"made for hidden_size=64, the served model has .*=128;"):
        install_predictor(None, Runner(hidden_size=128))


def test_a_server_without_dynts_is_not_listened_to(serve):
    serve("--attention-backend", "torch_native")
    runner = Runner()
    install_predictor(None, runner)
    assert not runner.logits_processor._forward_pre_hooks


def test_without_a_predictor_a_token_does_not_inherit_its_slots_earlier_score(serve, bare):
    flags = ("--dynts-budget", "80", "--dynts-local-window", "20", "--dynts-keep-ratio", "0.5")
    serve("--attention-backend", "dynts", "--dynts-policy", "window", *flags, folder=bare)
    runner = Runner()
    install_predictor(None, runner)
    state = on_runner(runner).state = DeviceState(4, torch.zeros(1, 1))
    state.scores.scores.fill_(float("inf"))
    runner.forward(torch.randn(2, 64), [3, 1])
    assert state.scores.scores.tolist() == [float("inf"), 0, float("inf"), 0]


@pytest.mark.parametrize("value", [1e30, 0.0])
def test_a_predictor_whose_scores_say_nothing_stops_the_start(serve, model, tmp_path, value):
    source = model / PREDICTOR_FILE
    with safe_open(source, "pt") as file:
        header = file.metadata()
    tensors = {name: torch.full_like(one, value) for name, one in load_file(source).items()}
    save_file(tensors, tmp_path / "bad.safetensors", metadata=header)
    serve("--attention-backend", "dynts", "--dynts-predictor", str(tmp_path / "bad.safetensors"))
    with pytest.raises(ValueError, match=r"bad.safetensors: (its scores are not finite|every token)"):
        install_predictor(None, Runner())


def test_weights_that_are_drawn_near_0_do_not_make_a_good_predictor_a_bad_one(serve):
    """As for a benchmark; a norm of such weights gives states so small that all scores are equal."""
    runner = Runner(torch.float16)
    runner.model.norm = torch.nn.Module()
    runner.model.norm.weight = torch.nn.Parameter(torch.full((64,), 1e-6))
    serve("--attention-backend", "dynts")
    with pytest.raises(ValueError, match="every token"):
        install_predictor(None, runner)
    serve("--attention-backend", "dynts", "--load-format", "dummy")
    install_predictor(None, runner)


@pytest.mark.parametrize(
    ("norm", "size"), [(RMSNorm, 0.5), (GemmaRMSNorm, 1.5), (Gemma3RMSNorm, 1.5)], ids=str
)
def test_states_are_as_large_as_the_final_norm_makes_them(serve, norm, size):
    """Gemma's norms multiply by 1 + weight, and their weights are about 0."""
    serve("--attention-backend", "dynts")
    model = torch.nn.Module()
    model.norm = norm(8)
    model.norm.weight.data.fill_(0.5)
    assert torch.equal(torch.as_tensor(size_of_states(model, 8)), torch.full((8,), size))
