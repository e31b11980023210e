"""The platform plug-in serves only where nothing else would."""

import inspect
import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from sgl_dynts.harness.server import CACHES
from sglang_dynts.boot.cpu.platform import HostCpuPlatform
from sglang_dynts.boot.host_cpu import activate


def test_a_plain_cpu_machine_gets_our_platform(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    assert activate() == "sglang_dynts.boot.cpu.platform.HostCpuPlatform"


def test_a_machine_with_an_accelerator_is_left_to_sglang(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert activate() is None


def test_sglangs_own_cpu_engine_is_left_to_sglang(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert activate() is None


@pytest.mark.parametrize("asked", [["--attention-backend", "dynts"], ["--config", "{}"], ["--config={}"]])
def test_a_start_without_a_home_folder_ends_with_one_sentence(monkeypatch, tmp_path, asked):
    file = tmp_path / "server.yaml"
    file.write_text("attention-backend: dynts\n")
    monkeypatch.delenv("HOME")
    monkeypatch.setenv(CACHES, "~/.cache/sglang")  # as SGLang sets it where nobody else does
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(sys, "argv", ["launch_server", *(word.format(file) for word in asked)])
    with pytest.raises(SystemExit, match=r"^DynTS: HOME is not set, .* set HOME to one"):
        activate()
    monkeypatch.setattr(sys, "argv", ["launch_server", "--config", str(tmp_path / "none.yaml")])
    activate()


@pytest.mark.parametrize("module", ["sglang_dynts", "sglang_dynts.boot.host_cpu"])
def test_what_sglang_looks_up_while_it_is_imported_imports_nothing_of_it(module):
    code = f"import sys, {module}; sys.exit(any(m.split('.')[0] == 'sglang' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


NOTHING_ASKED = {
    "enable_lora": None,
    "lora_paths": None,
    "enable_strict_thinking": False,
    "attention_backend": None,
    "moe_runner_backend": "auto",
    "tp_size": 1,
}


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        ({"enable_lora": True}, "--enable-lora/--lora-paths: "),
        ({"lora_paths": ["a=b"]}, "--enable-lora/--lora-paths: "),
        ({"enable_strict_thinking": True}, "--enable-strict-thinking: "),
    ],
)
def test_what_needs_a_gpu_is_refused_with_its_flag(asked, flag):
    with pytest.raises(ValueError, match=f"{flag}.* on a GPU"):
        platform().apply_server_args_defaults(Namespace(**NOTHING_ASKED | asked))


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(2, 1, "1"), (16, 1, "8"), (16, 2, "4"), (1, 2, "1")]
)
def test_ranks_get_half_of_the_usable_cores(monkeypatch, cores, ranks, threads):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    args = Namespace(**NOTHING_ASKED | {"tp_size": ranks})
    platform().apply_server_args_defaults(args)
    assert os.environ == {"OMP_NUM_THREADS": threads, "SGLANG_MAMBA_CONV_DTYPE": "float32"}
    assert (args.attention_backend, args.disable_custom_all_reduce) == ("torch_native", True)


def test_what_the_operator_chose_is_left_as_it_is(monkeypatch):
    chosen = {"OMP_NUM_THREADS": "3", "SGLANG_MAMBA_CONV_DTYPE": "bfloat16"}
    monkeypatch.setattr(os, "environ", dict(chosen))
    platform().apply_server_args_defaults(Namespace(**NOTHING_ASKED))
    assert os.environ == chosen


def test_the_platform_answers_whatever_sglang_may_ask_a_device():
    """All but what one way to draft alone asks, which the platform says it does not have."""
    unanswered = [
        name
        for name in dir(HostCpuPlatform)
        if not name.startswith("_")
        and callable(getattr(HostCpuPlatform, name))
        and "raise NotImplementedError" in inspect.getsource(getattr(HostCpuPlatform, name))
    ]
    assert unanswered == ["get_default_speculative_draft_attention_backend"]
    assert not platform().supports_speculative_algorithm("DFLASH")
    assert platform().supports_speculative_algorithm("EAGLE")


def platform() -> HostCpuPlatform:
    return HostCpuPlatform()
