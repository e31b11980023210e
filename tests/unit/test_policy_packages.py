"""A policy of somebody else's package: installed, it is there; broken, it is named."""

import subprocess
import sys
from pathlib import Path

import pytest

import sgl_dynts

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1"

[project.entry-points."sgl_dynts.policies"]
theirs = "{module}:{what}"

[tool.setuptools]
py-modules = ["{module}"]
"""


def guide() -> str:
    """The class that POLICIES.md writes."""
    text = (Path(sgl_dynts.__file__).parent / "POLICIES.md").read_text()
    return text.partition("```python\n")[2].partition("```")[0]


def installed(folder: Path, code: str, what: str = "EveryOther", module: str = "their_policy") -> Path:
    """Install a package with this module; returns what to put on the path."""
    source, target = folder / "source", folder / "installed"
    source.mkdir()
    project = PROJECT.format(name=module.replace("_", "-"), module=module, what=what)
    (source / "pyproject.toml").write_text(project)
    (source / f"{module}.py").write_text(code)
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--python", sys.executable]
    command = [
        *uv,
        "--offline",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
        str(source),
    ]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    return target


def asked(target: Path, code: str) -> str:
    """What a fresh Python prints that has the package."""
    command = [sys.executable, "-W", "ignore", "-c", given(target, code)]
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def given(target: Path, code: str) -> str:
    """A program that has the package."""
    return f"import sys; sys.path.insert(0, {str(target)!r})\n{code}"


def test_an_installed_policy_is_registered_described_and_scores(tmp_path):
    target = installed(tmp_path, guide())
    code = """
import numpy as np, torch
from sgl_dynts.policies import Candidates, ModelFacts, as_markdown, build_policies, policy_names
some = Candidates(torch.zeros(5), np.arange(10, 14), np.zeros(4, dtype=np.int64), [1, 2])
kept = build_policies(ModelFacts())["every-other"].score(some).argsort(descending=True)[:3]
row = "| `every-other` | even positions, then newest |"
print(policy_names()[-1], kept.tolist(), row in as_markdown())
"""
    assert asked(target, code) == "every-other [3, 1, 4] True"


@pytest.mark.e2e
def test_flags_help_and_requests_know_it(tmp_path, warm):
    target = installed(tmp_path, guide())
    code = """
from sglang.srt.plugins import load_plugins
load_plugins()
import msgspec
from sglang_dynts.boot.server_args import DynTSServerArgs
from sglang_dynts.entry.options import request_config
from sgl_dynts.config import DynTSConfig
from sgl_dynts.policies import policies
hints = DynTSServerArgs.__annotations__["dynts_policy"].__metadata__[0].help
config = DynTSConfig(96, 16, 0.4)
print("RESULT", "every-other" in hints, request_config({"policy": "every-other"}, config, None) == config)
"""
    program, log = tmp_path / "program.py", tmp_path / "log"
    program.write_text(given(target, code))
    process = warm.start([str(program)], log)
    assert process.wait(300) == 0, log.read_text()
    assert "RESULT True True" in log.read_text()


@pytest.mark.parametrize(
    ("code", "what", "complaint"),
    [
        ("1 / 1", "Missing", "has no attribute 'Missing'"),
        ("Wrong = 3", "Wrong", "is no class of sgl_dynts.policies.Policy"),
        (guide().replace("every-other", "window"), "EveryOther", "is already: choose another name"),
        ("import not_there", "EveryOther", "No module named 'not_there'"),
        ("class EveryOther(", "EveryOther", "'(' was never closed"),
        ("class EveryOther(NotDefined): pass", "EveryOther", "name 'NotDefined' is not defined"),
        ("raise RuntimeError('no licence')", "EveryOther", "no licence"),
    ],
)
def test_one_that_cannot_be_used_is_named_with_its_package(tmp_path, code, what, complaint):
    target = installed(tmp_path, code, what)
    said = asked(target, "from sgl_dynts.policies import policies; policies()")
    assert "ValueError: the policy 'theirs' of the package their-policy cannot be used: " in said
    assert complaint in said
