"""What is installed: the commands, the files, and nothing that another SGLang already has."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = sorted(PROJECT["scripts"])
UV = str(Path(sys.executable).with_name("uv"))
OURS = {"sgl_dynts", "sglang_dynts", "benchmark"}
OLDER = "2.13.0"
"""A torch that an existing installation may have."""
OF_TRAINING = ("sgl_dynts/training/", "sgl_dynts/tasks/")
"""The rooms for which the extra `training` is."""
SLOW = {"sglang", "torch", "transformers"}


def name_of(requirement: str) -> str:
    for sign in "[=<>!~; ":
        requirement = requirement.partition(sign)[0]
    return requirement.lower().replace("_", "-")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - OURS


@pytest.mark.parametrize("folder", ["sgl_dynts", "python/sglang_dynts"])
def test_every_imported_distribution_is_declared(folder):
    needed = {name_of(one) for one in PROJECT["dependencies"]}
    of_training = needed | {name_of(one) for one in PROJECT["optional-dependencies"]["training"]}
    providers = packages_distributions()
    for path in (ROOT / folder).rglob("*.py"):
        file = path.relative_to(ROOT).as_posix()
        declared = of_training if file.startswith(OF_TRAINING) else needed
        for name in imports_of(path):
            offered = {provider.lower().replace("_", "-") for provider in providers[name]}
            assert offered & declared, f"{file}: {name}"


def test_torch_and_transformers_are_sglang_s_to_bring():
    exact = [name_of(one) for one in PROJECT["dependencies"] if "==" in one.partition(";")[0]]
    assert exact == ["sglang"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_installed_command_tells_how_it_is_used(script):
    (found,) = [one for one in entry_points(group="console_scripts") if one.name == script]
    assert found.dist is not None
    assert found.dist.name == "sgl-dynts"
    program = Path(sys.executable).with_name(script)
    listing = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        [program, "--help"], capture_output=True, text=True, timeout=120, env=listing, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & SLOW


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this copy, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "results", "build", "__pycache__")
    shutil.copytree(ROOT, folder / "copy", ignore=ignored)
    options = ["--offline", "--no-build-isolation", "--python", sys.executable]
    command = [UV, "build", "--wheel", *options, "--out-dir", str(folder), str(folder / "copy")]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_carries_what_a_user_imports_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "sgl_dynts",
        "sglang_dynts",
        wheel.name.partition("-py3")[0] + ".dist-info",
    }
    assert {
        *("sgl_dynts/py.typed", "sglang_dynts/py.typed", "sglang_dynts/seams.json"),
        *("sglang_dynts/dashboards/dynts.json", "sgl_dynts/page/static/page.js"),
        *("sgl_dynts/demo/model/model.safetensors", "sgl_dynts/demo/model/dynts/predictor.safetensors"),
        *("sglang_dynts/scheduling/apply.py", "sgl_dynts/policies/rkv.py"),
    } <= set(names)
    assert not [name for name in names if "simulation" in name or "/tests/" in name]


@pytest.fixture
def existing(tmp_path) -> Path:
    """An environment that has SGLang 0.5.23 with an older torch, as far as an installer can tell."""
    subprocess.run(
        [UV, "venv", "--offline", "--python", sys.executable, str(tmp_path / "venv")],
        check=True,
        capture_output=True,
    )
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    versions = {name_of(one): "99" for one in PROJECT["dependencies"]}
    versions |= {"sglang": "0.5.23", "torch": OLDER, "transformers": "5.0.0"}
    for name, version in versions.items():
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("")
        (info / "INSTALLER").write_text("pip\n")
    return tmp_path / "venv" / "bin" / "python"


def resolved(python: Path, what: str) -> subprocess.CompletedProcess:
    command = [UV, "pip", "install", "--dry-run", "--offline", "--python", str(python), what]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_beside_an_existing_sglang_nothing_but_this_package_is_installed(existing, wheel):
    done = resolved(existing, str(wheel))
    assert done.returncode == 0, done.stderr
    changes = [line.strip() for line in done.stderr.splitlines() if line.strip()[:2] in ("+ ", "- ")]
    assert len(changes) == 1, done.stderr
    assert changes[0].startswith("+ sgl-dynts")


def test_a_pinned_torch_would_be_noticed(existing, wheel):
    """The same question, asked of the extra that the project's own environment is made with."""
    done = resolved(existing, f"sgl-dynts[pinned] @ {wheel.as_uri()}")
    said = done.stderr
    assert done.returncode != 0 or f"- torch=={OLDER}" in said, said
    assert "torch" in said
