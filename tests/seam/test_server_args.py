"""Flags, defaults, what ``dynts`` implies: through SGLang's own parser and resolution."""

import pickle
import re
from argparse import Namespace

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sglang.srt import server_args
from sglang.srt.arg_groups import model_override_base
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.runtime_context import override_platform

from sgl_dynts.checkpoint import PREDICTOR_FILE, PredictorHeader, save_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.predictor import ImportancePredictor
from sglang_dynts.boot import kernel_choice
from sglang_dynts.boot.server_args import DynTSServerArgs

DYNTS = ("--attention-backend", "dynts")
FLAGS = (
    "--enable-dynts",
    "--dynts-predictor",
    "--dynts-policy",
    "--dynts-observe-queries",
    "--dynts-budget",
    "--dynts-local-window",
    "--dynts-keep-ratio",
    "--dynts-min-selection",
    "--dynts-think-start",
    "--dynts-think-end",
    "--dynts-disable-elastic",
    "--dynts-host-memory-gb",
)


def windows(cfg) -> tuple:
    return cfg.dynts_budget, cfg.dynts_local_window, cfg.dynts_keep_ratio


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit):
        server_args.prepare_server_args(["--help"])
    shown = capsys.readouterr().out
    assert [flag for flag in FLAGS if flag not in shown] == []
    assert re.search(r"--attention-backend \{[^}]*\bdynts\b[^}]*\}", shown)


def test_sglang_builds_our_arguments(resolve):
    assert type(resolve()) is DynTSServerArgs


def test_the_backend_implies_kernels_cache_page_size_and_the_headers_windows(view):
    cfg = view(*DYNTS)
    assert (cfg.enable_dynts, cfg.attention_backend) == (True, "torch_native")
    assert (cfg.radix_cache_backend, cfg.page_size) == ("dynts", 1)
    assert windows(cfg) == (96, 16, 0.4)


def test_dynts_may_be_turned_on_under_the_kernels_in_use(view):
    cfg = view("--enable-dynts", "--attention-backend", "torch_native")
    assert (cfg.radix_cache_backend, windows(cfg)) == ("dynts", (96, 16, 0.4))


def test_flags_override_the_header(view):
    flags = ("--dynts-budget", "80", "--dynts-local-window", "20", "--dynts-keep-ratio", "0.5")
    assert windows(view(*DYNTS, *flags)) == (80, 20, 0.5)
    assert windows(view(*DYNTS, "--dynts-budget", "200")) == (200, 16, 0.4)


def test_another_predictor_brings_its_own_windows(view, tmp_path):
    header = PredictorHeader(64, "base", "trace", DynTSConfig(50, 10, 0.3))
    save_predictor(tmp_path / "other", ImportancePredictor(64, (4, 2)), header)
    assert windows(view(*DYNTS, "--dynts-predictor", str(tmp_path / "other"))) == (50, 10, 0.3)


def test_a_config_file_sets_our_flags(view, tmp_path):
    settings = {"attention-backend": "dynts", "dynts-budget": 77, "dynts-keep-ratio": 0.25}
    (tmp_path / "server.yaml").write_text(yaml.safe_dump(settings))
    cfg = view("--config", str(tmp_path / "server.yaml"))
    assert (cfg.attention_backend, windows(cfg)) == ("torch_native", (77, 16, 0.25))


@pytest.mark.parametrize("settings", [{"attention-backend": "dynts"}, {"enable-dynts": True}])
def test_a_config_file_that_sglang_does_not_read_is_refused(model, tmp_path, settings):
    path = tmp_path / "server.yaml"
    path.write_text(yaml.safe_dump(settings))
    message = (
        f"--config={path}: SGLang reads a configuration file only if it is a word of its own, and this"
    )
    with refuses(f"{message} one asks for DynTS; write --config {path}"):
        server_args.prepare_server_args(["--model-path", str(model), f"--config={path}"])


def test_a_config_file_without_dynts_is_left_to_sglang(model, tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("max-total-tokens: 77\n")
    args = server_args.prepare_server_args(["--model-path", str(model), f"--config={path}"])
    assert args.max_total_tokens is None  # pyright: ignore  SGLang makes its fields at run time


def test_a_server_without_dynts_is_left_alone(view):
    cfg = view("--attention-backend", "torch_native")
    assert (cfg.enable_dynts, cfg.radix_cache_backend) == (False, None)
    assert windows(cfg) == (None, None, None)


def test_resolved_arguments_survive_the_way_to_a_child_process(resolve):
    args = resolve(*DYNTS, "--dynts-budget", "80", "--dynts-think-end", "</think>")
    twin = pickle.loads(pickle.dumps(args))
    assert type(twin) is DynTSServerArgs
    for name in args.__struct_fields__:
        assert getattr(resolving_view(twin), name) == getattr(resolving_view(args), name)
    assert windows(resolving_view(twin)) == (80, 16, 0.4)


def refuses(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--dynts-budget", "1", "--dynts-budget 1 must lie between 2 and 2147483648"),
        (
            "--dynts-budget",
            "16",
            "--dynts-budget 16 must be larger than local_window=16: raise the budget or shorten the "
            "local window",
        ),
        ("--dynts-local-window", "0", "--dynts-local-window 0 must lie between 1 and 2147483648"),
        (
            "--dynts-keep-ratio",
            "1",
            "--dynts-keep-ratio 1.0 must lie between 0 and 1, both excluded",
        ),
        (
            "--dynts-keep-ratio",
            "nan",
            "--dynts-keep-ratio nan must lie between 0 and 1, both excluded",
        ),
        (
            "--dynts-host-memory-gb",
            "-1",
            "--dynts-host-memory-gb -1.0 must be a number of GiB, 0 or more",
        ),
        (
            "--dynts-host-memory-gb",
            "nan",
            "--dynts-host-memory-gb nan must be a number of GiB, 0 or more",
        ),
        (
            "--dynts-policy",
            "best",
            "--dynts-policy best is not known; choose one of predictor, calibrated, hybrid, "
            "random, random_per_head, window, streaming, sepllm, bottom, h2o, h2o_per_head, snapkv, "
            "snapkv_per_head, rkv, rkv_per_head, triattention_per_head, full",
        ),
        (
            "--dynts-policy",
            "snapkv",
            "--dynts-policy snapkv reads attention; give --dynts-observe-queries 32 or another number",
        ),
        (
            "--dynts-policy",
            "h2o",
            "--dynts-policy h2o reads attention; give --dynts-observe-queries 32 or another number",
        ),
        (
            "--dynts-observe-queries",
            "8",
            "--dynts-observe-queries cannot be served: --dynts-host-memory-gb 16: host copies hold no "
            "queries; give 0",
        ),
        ("--dynts-min-selection", "-1", "--dynts-min-selection -1 must lie between 0 and 2147483648"),
        (
            "--dynts-min-selection",
            "33",
            "--dynts-min-selection 33 must not exceed keep_ratio * (budget - local_window) = 32: "
            "lower it or raise the budget",
        ),
        (
            "--dynts-predictor",
            "/gone",
            "--dynts-predictor /gone: no such file or folder; name a predictor file, or a folder "
            f"that holds {PREDICTOR_FILE}",
        ),
        (
            "--prefill-attention-backend",
            "dynts",
            "--prefill-attention-backend/--decode-attention-backend dynts: DynTS governs both "
            "phases; use --attention-backend dynts",
        ),
        (
            "--decode-attention-backend",
            "dynts",
            "--prefill-attention-backend/--decode-attention-backend dynts: DynTS governs both "
            "phases; use --attention-backend dynts",
        ),
    ],
)
def test_a_bad_value_is_refused_by_flag_value_and_remedy(resolve, flag, value, message):
    with refuses(message):
        resolve(*DYNTS, flag, value)


@pytest.mark.parametrize("flag", ["--dynts-budget", "--dynts-local-window", "--dynts-keep-ratio"])
def test_a_value_that_is_no_number_is_refused_by_the_parser(resolve, capsys, flag):
    with pytest.raises(SystemExit):
        resolve(*DYNTS, flag, "many")
    assert f"argument {flag}: invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--dynts-predictor", "/somewhere"),
        ("--dynts-policy", "window"),
        ("--dynts-observe-queries", "8"),
        ("--dynts-budget", "80"),
        ("--dynts-local-window", "8"),
        ("--dynts-keep-ratio", "0.4"),
        ("--dynts-min-selection", "0"),
        ("--dynts-think-start", "<think>"),
        ("--dynts-think-end", "</think>"),
        ("--dynts-host-memory-gb", "4"),
        ("--dynts-disable-elastic", None),
    ],
)
def test_our_flags_without_dynts_ask_for_something_that_would_not_happen(resolve, flag, value):
    words = [flag] if value is None else [flag, value]
    with refuses(
        f"{flag} given, but DynTS is off; add --attention-backend dynts or --enable-dynts, or drop "
        "the flag"
    ):
        resolve("--attention-backend", "torch_native", *words)


def test_a_predictor_for_another_width_is_refused(resolve, tmp_path):
    path = tmp_path / "wide"
    header = PredictorHeader(3584, "base", "trace", DynTSConfig(50, 10, 0.3))
    save_predictor(path, ImportancePredictor(3584, (4, 2)), header)
    with refuses(
        f"--dynts-predictor {path}: made for hidden_size=3584, the served model has hidden_size=64; "
        "name a predictor trained for this model"
    ):
        resolve(*DYNTS, "--dynts-predictor", str(path))


def test_a_header_that_recommends_impossible_windows_is_refused(resolve, tmp_path):
    path = tmp_path / "bad"
    header = PredictorHeader(64, "base", "trace", DynTSConfig(60, 50, 0.3))
    save_predictor(path, ImportancePredictor(64, (4, 2)), header)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | {"budget": "50"}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ValueError, match=re.escape(f"{path}: bad header: budget=50 must be larger")):
        resolve(*DYNTS, "--dynts-predictor", str(path))


def test_a_device_without_kernels_is_refused(model):
    argv = ["--model-path", str(model), *DYNTS, "--device", "xpu"]
    args = server_args.prepare_server_args(argv)
    with refuses("--attention-backend dynts does not support --device xpu; supported: cuda, cpu"):
        args.resolve_once()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for the default on a CPU machine")
def test_the_device_need_not_be_named_on_a_cpu_machine(model):
    args = server_args.prepare_server_args(["--model-path", str(model), *DYNTS])
    args.resolve_once()
    cfg = resolving_view(args)
    assert (cfg.device, cfg.attention_backend) == ("cpu", "torch_native")


PLATFORMS = {"fa3": {"is_hopper_with_cuda_12_3": True}, "trtllm_mha": {"is_sm100": True}}
PAGE_LINE = "DynTS: page size 1, whatever the platform's is, because single tokens are freed"
CUDA = ("--device", "cuda")


@pytest.fixture
def on_platform(monkeypatch):
    """Make SGLang resolve for a GPU where its own choice of attention is this one."""
    platform = type(model_override_base.current_platform)
    monkeypatch.setattr(platform, "is_out_of_tree", lambda _self: False)
    monkeypatch.setattr(platform, "apply_server_args_defaults", lambda _self, _args: None)
    return lambda usual: override_platform(**PLATFORMS[usual])


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """What the choice of kernels logs; SGLang's set-up of logging keeps it from pytest's own capture."""
    said: list[str] = []
    monkeypatch.setattr(kernel_choice.logger, "info", lambda text, *values: said.append(text % values))
    return said


@pytest.mark.parametrize("usual", PLATFORMS)
def test_dynts_means_flashinfer_on_cuda_whatever_the_platforms_choice_is(view, on_platform, lines, usual):
    with on_platform(usual):
        cfg = view(*DYNTS, *CUDA)
    assert (cfg.attention_backend, cfg.page_size) == ("flashinfer", 1)
    assert lines == [
        PAGE_LINE,
        f"DynTS: flashinfer attention; SGLang's own choice here would be {usual}",
    ]


def test_kernels_that_need_pages_are_replaced_where_none_were_named(view, on_platform, lines):
    with on_platform("trtllm_mha"):
        stock, cfg = view(*CUDA), view("--enable-dynts", *CUDA)
    assert (stock.attention_backend, stock.page_size) == ("trtllm_mha", 64)
    assert (cfg.attention_backend, cfg.page_size) == ("flashinfer", 1)
    assert lines == [
        PAGE_LINE,
        "DynTS: flashinfer attention; SGLang's own choice here would be trtllm_mha",
    ]


def test_the_platforms_kernels_stay_where_they_fit(view, on_platform, lines):
    with on_platform("fa3"):
        cfg = view("--enable-dynts", *CUDA)
    assert (cfg.attention_backend, cfg.page_size) == ("fa3", 1)
    assert lines == [PAGE_LINE]


@pytest.mark.parametrize("kernels", ["fa3", "triton", "flashinfer"])
def test_named_kernels_are_kept(view, on_platform, kernels):
    with on_platform("trtllm_mha"):
        cfg = view("--enable-dynts", "--attention-backend", kernels, *CUDA)
    assert (cfg.attention_backend, cfg.page_size, cfg.radix_cache_backend) == (kernels, 1, "dynts")


@pytest.mark.parametrize(
    ("facts", "hopper", "elsewhere"),
    [
        ({}, "flashinfer", "flashinfer"),
        ({"has_attention_sinks": True}, "fa3", "triton"),
        ({"is_hybrid_swa": True}, "fa3", "triton"),
        ({"hf_config": Namespace(architectures=["Exaone4ForCausalLM"])}, "fa3", "triton"),
    ],
)
def test_dynts_means_kernels_that_know_the_model(monkeypatch, facts, hopper, elsewhere):
    plain = {"has_attention_sinks": False, "is_hybrid_swa": False}
    model = Namespace(**({**plain, "hf_config": Namespace(architectures=["LlamaForCausalLM"])} | facts))
    for is_hopper, kernels in ((True, hopper), (False, elsewhere)):
        platform = Namespace(is_hopper_with_cuda_12_3=is_hopper)
        monkeypatch.setattr(kernel_choice, "get_platform", lambda platform=platform: platform)
        assert kernel_choice.meant_by_dynts("cuda", model) == kernels


def test_kernels_named_for_each_phase_are_kept(view, on_platform):
    split = ("--prefill-attention-backend", "fa3", "--decode-attention-backend", "flashinfer")
    with on_platform("trtllm_mha"):
        cfg = view("--enable-dynts", *split, *CUDA)
    assert (cfg.prefill_attention_backend, cfg.decode_attention_backend) == ("fa3", "flashinfer")
    assert cfg.page_size == 1


def test_named_kernels_that_need_pages_are_refused(resolve, on_platform):
    message = (
        "DynTS does not support --attention-backend trtllm_mha; use --attention-backend dynts, or "
        "--enable-dynts with one of flashinfer, fa3, triton, torch_native"
    )
    with on_platform("trtllm_mha"), refuses(message):
        resolve("--enable-dynts", "--attention-backend", "trtllm_mha", *CUDA)


def test_a_page_size_that_was_named_is_refused_and_not_replaced(resolve, on_platform):
    message = "DynTS does not support --page-size 16: single tokens are freed; use --page-size 1"
    with on_platform("fa3"), refuses(message):
        resolve(*DYNTS, "--page-size", "16", *CUDA)


def test_a_server_without_dynts_gets_the_platforms_kernels_and_no_line(view, on_platform, lines):
    with on_platform("fa3"):
        assert view(*CUDA).attention_backend == "fa3"
    assert lines == []


def test_a_policy_that_needs_no_predictor_starts_without_one(view, bare):
    flags = ("--dynts-budget", "80", "--dynts-local-window", "20", "--dynts-keep-ratio", "0.5")
    cfg = view(*DYNTS, "--dynts-policy", "window", *flags, folder=bare)
    assert (cfg.dynts_policy, windows(cfg)) == ("window", (80, 20, 0.5))


def test_a_model_without_a_predictor_follows_what_its_queries_will_ask(view, bare):
    cfg = view(*DYNTS, folder=bare)
    assert (cfg.dynts_policy, cfg.dynts_policy_why) == ("calibrated", "the model has no predictor")
    assert cfg.dynts_calibrates
    assert windows(cfg) == (1024, 409, 0.4)  # a quarter of a context of 4096 tokens, two fifths of that
    assert "calibrated" not in cfg.dynts_unserved_policies


def test_a_model_with_a_predictor_follows_it(view, model):
    cfg = view(*DYNTS)
    assert cfg.dynts_policy == "predictor"
    assert cfg.dynts_policy_why == f"the model has a predictor: {model / PREDICTOR_FILE}"
    assert not cfg.dynts_calibrates
    assert cfg.dynts_unserved_policies["calibrated"] == UNCALIBRATED


def test_a_policy_that_is_named_is_followed(view):
    cfg = view(*DYNTS, "--dynts-policy", "window")
    assert (cfg.dynts_policy, cfg.dynts_policy_why) == ("window", "--dynts-policy names it")


def test_requests_may_name_what_a_text_calibrates(view, model, tmp_path, resolve):
    text = tmp_path / "text"
    text.write_text("w9")
    cfg = view(*DYNTS, "--dynts-calibration-text", str(text))
    assert (cfg.dynts_policy, cfg.dynts_calibrates) == ("predictor", True)
    assert "calibrated" not in cfg.dynts_unserved_policies
    missing = f"{text}.not"
    with refuses(f"--dynts-calibration-text {missing} is no file; name a text file in UTF-8"):
        resolve(*DYNTS, "--dynts-calibration-text", missing)


def test_where_nothing_can_be_moved_a_model_without_predictor_says_so(resolve, bare, monkeypatch):
    monkeypatch.setenv("SGLANG_USE_HND_KVCACHE", "1")
    with refuses(
        "--dynts-policy calibrated, which is chosen since the model has no predictor, cannot be served: "
        "SGLANG_USE_HND_KVCACHE keeps K and V by head, where they cannot be moved by token; unset it"
    ):
        resolve(*DYNTS, "--dynts-host-memory-gb", "0", folder=bare)


def test_windows_that_are_given_go_before_those_of_the_context(view, bare):
    cfg = view(*DYNTS, "--dynts-policy", "random", "--dynts-budget", "80", folder=bare)
    assert windows(cfg) == (80, 32, 0.4)


@pytest.mark.parametrize("policy", ["predictor", "bottom"])
def test_a_policy_that_needs_a_predictor_does_not_start_without_one(resolve, bare, policy):
    with pytest.raises(ValueError, match="no predictor: --dynts-predictor is not given"):
        resolve(*DYNTS, "--dynts-policy", policy, folder=bare)


OBSERVE = ("--dynts-observe-queries", "8", "--dynts-host-memory-gb", "0")


def test_a_policy_that_reads_attention_is_served_where_queries_are_kept(view):
    assert view(*DYNTS, *OBSERVE, "--dynts-policy", "rkv").dynts_observe_queries == 8


def test_queries_are_not_kept_where_they_would_be_wrong(resolve):
    reason = "--kv-cache-dtype fp8_e4m3: keys are read without their scale; give auto"
    with refuses(f"--dynts-observe-queries cannot be served: {reason}"):
        resolve(*DYNTS, *OBSERVE, "--kv-cache-dtype", "fp8_e4m3")


UNCALIBRATED = "it needs a calibration; give --dynts-policy calibrated or --dynts-calibration-text FILE"
COUNTS = (
    "it counts attention by head, for the server's own policy alone; give --dynts-policy h2o_per_head"
)
WINDOWS = ("--dynts-budget", "80", "--dynts-local-window", "20", "--dynts-keep-ratio", "0.5")
AVERAGES = "--tp-size 2: it averages over heads, and each rank sees its own alone; use 1"


def test_ranks_serve_what_each_of_their_heads_decides_and_no_average(resolve, view):
    two = (*DYNTS, *OBSERVE, "--tp-size", "2")
    cfg = view(*two, "--dynts-policy", "rkv_per_head")
    assert cfg.dynts_unserved_policies["snapkv"] == AVERAGES
    assert "snapkv_per_head" not in cfg.dynts_unserved_policies
    with refuses(f"--dynts-policy rkv cannot be served: {AVERAGES}"):
        resolve(*two, "--dynts-policy", "rkv")


def test_sets_per_head_need_k_and_v_that_can_be_moved(resolve, view, monkeypatch):
    windows = ("--dynts-policy", "random_per_head", *WINDOWS)
    assert view(*DYNTS, *windows).dynts_unserved_policies == {
        "h2o_per_head": COUNTS,
        "calibrated": UNCALIBRATED,
        "hybrid": UNCALIBRATED.replace("calibrated", "hybrid"),
        "triattention_per_head": UNCALIBRATED.replace("calibrated", "triattention_per_head"),
    }
    monkeypatch.setenv("SGLANG_USE_HND_KVCACHE", "1")
    reason = "SGLANG_USE_HND_KVCACHE keeps K and V by head, where they cannot be moved by token; unset it"
    with refuses(f"--dynts-policy random_per_head cannot be served: {reason}"):
        resolve(*DYNTS, *windows)
