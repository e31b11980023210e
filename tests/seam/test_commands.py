"""Every command tells how it is used."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IS_COMMAND = re.compile(r'parse_args\(.*^if __name__ == "__main__":$', re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Modules that ``python -m`` runs and that read arguments."""
    sources = {ROOT: ("benchmark", "sgl_dynts", "tests/e2e"), ROOT / "python": ("sglang_dynts",)}
    files = [
        (root, file)
        for root, folders in sources.items()
        for name in folders
        for file in (root / name).rglob("*.py")
    ]
    found = [
        file.relative_to(root).with_suffix("")
        for root, file in files
        if IS_COMMAND.search(file.read_text())
    ]
    return sorted(".".join(path.parts).removesuffix(".__main__") for path in found)


def test_the_commands_are_found():
    assert {"benchmark.accuracy", "benchmark.gpu", "sgl_dynts.page"} < set(commands())


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", commands())
def test_a_command_prints_its_help(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out
