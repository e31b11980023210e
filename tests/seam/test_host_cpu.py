"""The platform plug-in serves only where nothing else would."""

import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from sglang_dynts.boot.host_cpu import activate


def test_a_plain_cpu_machine_gets_our_platform(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    assert activate() == "sglang_dynts.boot.host_cpu_platform.HostCpuPlatform"


def test_a_machine_with_an_accelerator_is_left_to_sglang(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert activate() is None


def test_sglangs_own_cpu_engine_is_left_to_sglang(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert activate() is None


@pytest.mark.parametrize("module", ["sglang_dynts", "sglang_dynts.boot.host_cpu"])
def test_what_sglang_looks_up_while_it_is_imported_imports_nothing_of_it(module):
    code = f"import sys, {module}; sys.exit(any(m.split('.')[0] == 'sglang' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("asked", [{"enable_lora": True}, {"lora_paths": ["a=b"]}])
def test_adapters_are_refused_where_sglang_cannot_load_them(asked):
    from sglang_dynts.boot.host_cpu_platform import HostCpuPlatform

    args = Namespace(**({"enable_lora": None, "lora_paths": None} | asked))
    with pytest.raises(ValueError, match=r"--enable-lora/--lora-paths: .* serve adapters on a GPU"):
        HostCpuPlatform().apply_server_args_defaults(args)
