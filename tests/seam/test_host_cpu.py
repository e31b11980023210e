"""The platform plug-in serves only where nothing else would."""

import subprocess
import sys

import pytest
import torch

from sglang_dynts.host_cpu import activate


def test_a_plain_cpu_machine_gets_our_platform(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    assert activate() == "sglang_dynts.host_cpu_platform.HostCpuPlatform"


def test_a_machine_with_an_accelerator_is_left_to_sglang(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert activate() is None


def test_sglangs_own_cpu_engine_is_left_to_sglang(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert activate() is None


@pytest.mark.parametrize("module", ["sglang_dynts", "sglang_dynts.host_cpu"])
def test_what_sglang_looks_up_while_it_is_imported_imports_nothing_of_it(module):
    code = f"import sys, {module}; sys.exit(any(m.split('.')[0] == 'sglang' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
