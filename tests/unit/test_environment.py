"""The environment is made once, by whatever is there, and never made again for nothing."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sgl_dynts import environment
from sgl_dynts.environment import ROOT, SetupError, ensure, fingerprint, is_complete, pinned_version

INSTALLS = ["pip install", "pip install"]
"""The project with its tests' needs, then SGLang's router for those that need it."""
UV = """#!/bin/sh
if [ "$1" = --version ]; then exit 0; fi
echo "$1 $2" >> {root}/calls
{extra}
mkdir -p {root}/.venv/bin
touch {root}/.venv/bin/python
echo home > {root}/.venv/pyvenv.cfg
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("first")
    return tmp_path


@pytest.fixture
def fake_uv(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a uv on the path that notes what it is called with."""

    def install(extra: str = "") -> None:
        folder = root / "tools"
        folder.mkdir(exist_ok=True)
        (folder / "uv").write_text(UV.format(root=root, extra=extra))
        (folder / "uv").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return install


def calls(root: Path) -> list[str]:
    """What the fake uv was told to do."""
    return (root / "calls").read_text().splitlines()


def test_uv_makes_the_environment_once(root: Path, fake_uv: Callable[..., None]) -> None:
    fake_uv()
    assert ensure(print, root) == root / ".venv" / "bin" / "python"
    assert calls(root) == ["venv --clear", *INSTALLS]
    ensure(print, root)
    assert calls(root) == ["venv --clear", *INSTALLS]


def test_changed_needs_are_installed_into_the_same_environment(
    root: Path, fake_uv: Callable[..., None]
) -> None:
    fake_uv()
    ensure(print, root)
    (root / "pyproject.toml").write_text("second")
    ensure(print, root)
    assert calls(root) == ["venv --clear", *INSTALLS, *INSTALLS]


def test_a_failed_step_tells_its_output_and_is_tried_again(
    root: Path, fake_uv: Callable[..., None]
) -> None:
    fake_uv('if [ "$1" = pip ]; then echo no such package; exit 3; fi')
    with pytest.raises(SetupError, match="no such package"):
        ensure(print, root)
    fake_uv()
    ensure(print, root)
    assert calls(root) == ["venv --clear", "pip install", *INSTALLS]


def test_a_router_that_cannot_be_installed_leaves_a_complete_environment(
    root: Path, fake_uv: Callable[..., None]
) -> None:
    fake_uv('case "$*" in *,router]*) echo no wheel; exit 1;; esac')
    said: list[str] = []
    ensure(said.append, root)
    assert "so its tests are skipped" in said[-1]
    assert "no wheel" in said[-1]
    ensure(said.append, root)
    assert calls(root) == ["venv --clear", *INSTALLS]


def test_without_uv_and_ensurepip_the_debian_package_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_find_uv", lambda python: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    version = "{}.{}".format(*sys.version_info)
    with pytest.raises(SetupError, match=f"the package python{version}-venv"):
        ensure(print, root)


def test_a_long_step_gives_signs_of_life(
    root: Path, fake_uv: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "SECONDS_BETWEEN_SIGNS", 0.05)
    fake_uv('if [ "$1" = venv ]; then sleep 0.3; fi')
    lines: list[str] = []
    ensure(lines.append, root)
    assert lines.count("  making .venv ... 0 s") >= 2


def test_the_fingerprint_follows_the_needs_and_the_python(root: Path) -> None:
    (root / ".venv").mkdir()
    seen = set()
    for needs, python in (("a", "3.11"), ("b", "3.11"), ("b", "3.12")):
        (root / "pyproject.toml").write_text(needs)
        (root / ".venv" / "pyvenv.cfg").write_text(python)
        seen.add(fingerprint(root))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("requirement", "version"),
    [
        ("sglang==0.5.23", "0.5.23"),
        ("sglang == 0.5.23 ; python_version > '3'", "0.5.23"),
        ("sglang>=0.5", None),
        ("sglang-router==1.0", None),
    ],
)
def test_pinned_version(requirement: str, version: str | None) -> None:
    assert pinned_version("sglang", ["torch==2.0", requirement]) == version


def test_the_environment_of_these_tests_is_complete() -> None:
    assert is_complete(ROOT)


def test_another_copy_of_the_project_does_not_count(root: Path) -> None:
    assert not is_complete(root)


def test_another_sglang_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.metadata, "version", lambda name: "0.5.22")
    assert not is_complete(ROOT)


STARTED = ("sgl_dynts.environment", "sgl_dynts.demo.__main__", "sgl_dynts.demo.english", "tests.__main__")


@pytest.mark.parametrize("module", STARTED)
def test_commands_start_on_a_bare_python(module: str) -> None:
    bare = [sys.executable, "-S", "-c", f"import {module}"]
    subprocess.run(bare, cwd=ROOT, check=True)


def test_the_environment_keeps_what_it_compiles(monkeypatch) -> None:
    """A server's processes would compile thousands of files at each start."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(environment, "ensure", lambda _say: Path(sys.executable))
    environment.enter("tests", print)
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ
    assert not sys.dont_write_bytecode


def test_packages_are_added_in_a_folder_of_their_own_without_what_they_ask_for(tmp_path: Path) -> None:
    wheel = tmp_path / "lonely-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("lonely.py", "here = True\n")
        described = "Metadata-Version: 2.1\nName: lonely\nVersion: 1.0\nRequires-Dist: no-such-package\n"
        file.writestr("lonely-1.0.dist-info/METADATA", described)
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr("lonely-1.0.dist-info/WHEEL", tag)
        file.writestr("lonely-1.0.dist-info/RECORD", "lonely.py,,\n")
    environment.add([str(wheel)], tmp_path / "added", print)
    assert (tmp_path / "added" / "lonely.py").is_file()
    assert importlib.util.find_spec("lonely") is None


def test_packages_that_cannot_be_had_end_with_the_installers_words(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"nowhere\.whl"):
        environment.add([str(tmp_path / "nowhere.whl")], tmp_path / "added", print)
