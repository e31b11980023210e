"""Puts in place what the lane needs, and says what there is.

    python3 -m benchmark.gpu.install

Runs on any Python 3.11 by the standard library alone. Where the running Python has the SGLang that this
project names, on its path or installed, nothing is fetched, so no network is needed: only this
project's entry points are written to build/, by which SGLang finds the plug-in. Elsewhere .venv is made,
as by the tests and the demo.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmark.harness.provenance import ROOT, parser_of
from sgl_dynts import environment
from sgl_dynts.environment import ENGINE, SetupError, pinned_version

SOURCES = (ROOT, ROOT / "python")
ENTRY_POINTS = ROOT / "build" / "entry_points"
WRITE_ENTRY_POINTS = """
import sys
from setuptools import build_meta
build_meta.prepare_metadata_for_build_wheel(sys.argv[1])
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that has everything once this repository and ``paths`` are on its path.

    The repository always is, so that no other copy that is installed is measured in its place.
    """

    python: Path
    paths: tuple[Path, ...] = ()

    def environ(self) -> dict[str, str]:
        """Return the variables to run it with: this process's own, its path, no buffered output."""
        known = os.environ.get("PYTHONPATH")
        paths = [*map(str, (*SOURCES, *self.paths)), *([known] if known else [])]
        return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def main() -> None:
    """Install, then check."""
    parser_of("gpu.install", __doc__).parse_args()
    try:
        found = install()
    except SetupError as error:
        raise SystemExit(
            f"{error}\nWithout a network, start this by a Python that has sglang {needed_engine()}"
        ) from error
    command = [str(found.python), "-m", "benchmark.gpu.check"]
    raise SystemExit(subprocess.run(command, cwd=ROOT, env=found.environ(), check=False).returncode)


def located() -> Interpreter | None:
    """Return the Python that was prepared, None where :func:`install` is still to be called."""
    if environment.is_complete():
        return Interpreter(Path(sys.executable))
    if has_engine():
        written = any(ENTRY_POINTS.glob("*.dist-info"))
        return Interpreter(Path(sys.executable), (ENTRY_POINTS,)) if written else None
    made = environment.made()
    return Interpreter(made) if made else None


def install() -> Interpreter:
    """Prepare a Python and return it.

    Raises:
        SetupError: nothing here has SGLang, and no environment could be made.
    """
    if environment.is_complete():
        say(f"installed before: sglang {needed_engine()} and this project; nothing is fetched")
    elif has_engine():
        say(f"installed before: sglang {needed_engine()}; only this project's entry points are added")
        write_entry_points(ENTRY_POINTS)
    else:
        environment.ensure(say)
    found = located()
    assert found is not None
    return found


def has_engine() -> bool:
    """Whether the running Python has the SGLang that this project names."""
    try:
        return metadata.version(ENGINE) == needed_engine()
    except metadata.PackageNotFoundError:
        return False


def needed_engine() -> str | None:
    """Return the version of SGLang that this project names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return pinned_version(ENGINE, project["dependencies"])


def write_entry_points(folder: Path) -> None:
    """Write this project's metadata, entry points among it, anew, by the build backend that it names.

    Raises:
        SetupError: setuptools is missing or too old.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", WRITE_ENTRY_POINTS, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"setuptools cannot read pyproject.toml:\n{done.stderr[-2000:]}")


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
