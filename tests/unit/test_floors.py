"""The floors of the two packages, as pyproject.toml states them."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_imports_run_one_way():
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [command, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_every_upstream_path_that_is_hooked_stands_in_one_file():
    sources = (REPOSITORY / "python" / "sglang_dynts").rglob("*.py")
    registering = [path.name for path in sources if "HookRegistry" in path.read_text()]
    assert registering == ["seams.py"]
