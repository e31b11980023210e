"""The project's own environment: made once, checked in no time, by the standard library alone.

A command of this project starts on any Python 3.11: it calls :func:`enter`, which makes ``.venv`` in
the repository's root if need be and starts the command again inside it. For scripts,
``python3 -m sgl_dynts.environment`` prints the Python of the environment.
"""

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
"""The repository, or the folder of packages that this one is installed in."""

DISTRIBUTION = "sgl-dynts"
ENGINE = "sglang"
STAMP = "sgl-dynts.stamp"
ROUTERS = ("sglang-router", "smg")
"""What the extra `router` names: compiled, and not for every machine."""
SECONDS_BETWEEN_SIGNS = 10
LINES_OF_A_FAILURE = 25

Say = Callable[[str], None]
"""Takes one line of progress."""


class SetupError(RuntimeError):
    """The environment could not be made; the message says what to do."""


def enter(module: str, say: Say) -> None:
    """Go on inside the project's environment: return if this is it, else start ``module`` there.

    Args:
        module: what ``python -m`` takes; it gets this process's arguments and takes its place.
        say: takes progress.

    Raises:
        SetupError: the environment could not be made.
    """
    python = ensure(say)
    _keep_compiled()
    if not _is_running(python):
        sys.stdout.flush()
        os.execv(python, [str(python), "-m", module, *sys.argv[1:]])


def ensure(say: Say, root: Path = ROOT) -> Path:
    """Return the Python of a complete environment, making it if need be.

    The running one is used as it is if it holds this project and the SGLang that it names.

    Args:
        say: takes progress.
        root: of the repository.

    Raises:
        SetupError: the environment could not be made.
    """
    if is_complete(root):
        return Path(sys.executable)
    if not (root / "pyproject.toml").is_file():
        raise SetupError(
            f"{sys.executable} has {DISTRIBUTION} without the {ENGINE} that it needs; "
            f"install {DISTRIBUTION} again together with its dependencies"
        )
    if (python := made(root)) is not None:
        return python
    python = root / ".venv" / "bin" / "python"
    _make(root, python, say)
    (root / ".venv" / STAMP).write_text(fingerprint(root))
    return python


def installed_files(package: str, pattern: str) -> list[Path]:
    """Return what an installed package carries, without importing its code.

    Args:
        package: its name in an import.
        pattern: of files, from the package's own folder on.
    """
    spec = importlib.util.find_spec(package)
    folders = () if spec is None else spec.submodule_search_locations or ()
    return [path for folder in folders for path in Path(folder).glob(pattern)]


def add(packages: Sequence[str], folder: Path, say: Say) -> None:
    """Install packages into a folder of their own, without what they ask for: no installed one moves.

    Args:
        packages: as an installer takes them.
        folder: made if need be; a process finds them there by ``PYTHONPATH``.
        say: takes progress.

    Raises:
        SetupError: they could not be installed.
    """
    uv = _find_uv(Path(sys.executable))
    pip = [sys.executable, "-m", "pip", "install"]
    install = pip if uv is None else [*uv, "pip", "install", "--python", sys.executable]
    command = [*install, "--no-deps", "--target", str(folder), *packages]
    run(command, ROOT, f"installing {' '.join(packages)}", say)


def made(root: Path = ROOT) -> Path | None:
    """Return the Python of the repository's own environment, None where it is not made or is outdated."""
    python, stamp = root / ".venv" / "bin" / "python", root / ".venv" / STAMP
    if python.exists() and stamp.is_file() and stamp.read_text() == fingerprint(root):
        return python
    return None


def is_complete(root: Path = ROOT) -> bool:
    """Whether the running Python holds this project, from here, and the SGLang that it names."""
    try:
        needed = pinned_version(ENGINE, metadata.requires(DISTRIBUTION) or [])
        complete = needed is not None and metadata.version(ENGINE) == needed
    except metadata.PackageNotFoundError:
        return False
    return complete and (_is_from(root) or not (root / "pyproject.toml").is_file())


def pinned_version(name: str, requirements: Sequence[str]) -> str | None:
    """Return the version that a list of requirements pins ``name`` to, None where it does not."""
    pin = re.compile(rf"{re.escape(name)}\s*==\s*([^\s;,]+)")
    return next((found[1] for line in requirements if (found := pin.match(line))), None)


def fingerprint(root: Path) -> str:
    """Return what an environment was made for: this project's needs and the environment's Python."""
    made_for = [root / "pyproject.toml", root / ".venv" / "pyvenv.cfg"]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in made_for)).hexdigest()


def _is_from(root: Path) -> bool:
    """Whether SGLang would load this repository's plug-in, not another copy's."""
    spec = importlib.util.find_spec("sglang_dynts")
    return spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(root)


def _keep_compiled() -> None:
    """Let the environment, which is ours, keep what it compiles, whatever the caller's rule is elsewhere.

    Every process of a server imports thousands of files, and compiles them each time where none is kept.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def _is_running(python: Path) -> bool:
    return python == Path(sys.executable) or python.parent.parent == Path(sys.prefix)


def _make(root: Path, python: Path, say: Say) -> None:
    doing = "Updating" if python.exists() else "Making, once and of several gigabytes,"
    say(f"{doing} the environment in {root / '.venv'}")
    uv = _find_uv(python)
    if uv is None:
        _make_with_stdlib(root / ".venv")
        run([str(python), "-m", "pip", "install", "uv"], root, "installing uv", say)
        uv = [str(python), "-m", "uv"]
    elif not python.exists():
        new = [*uv, "venv", "--clear", "--python", sys.executable, str(root / ".venv")]
        run(new, root, "making .venv", say)
    install = [*uv, "pip", "install", "--python", str(python), "-e"]
    run([*install, ".[pinned,test]"], root, "installing the project, SGLang and torch", say)
    built = [word for name in ROUTERS for word in ("--only-binary", name)]
    try:
        run([*install, ".[pinned,test,router]", *built], root, "installing SGLang's router", say)
    except SetupError as error:
        say(f"  SGLang's router cannot be installed, so its tests are skipped: {str(error)[-200:]}")


def _find_uv(python: Path) -> list[str] | None:
    """Return the command of a uv that works: on the path, beside us, or beside ``python``."""
    for command in (["uv"], [sys.executable, "-m", "uv"], [str(python), "-m", "uv"]):
        try:
            probe = subprocess.run([*command, "--version"], capture_output=True, check=False)
        except FileNotFoundError:
            continue
        if probe.returncode == 0:
            return command
    return None


def _make_with_stdlib(folder: Path) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        version = "{}.{}".format(*sys.version_info)
        raise SetupError(
            f"Python {version} cannot make environments: there is no uv, and its ensurepip is "
            f"missing. Install uv, or on Debian and Ubuntu the package python{version}-venv"
        )
    venv.create(folder, clear=True, with_pip=True)


def run(
    command: list[str], root: Path, step: str, say: Say, more: Mapping[str, str] | None = None
) -> None:
    """Run one step, giving a sign of life now and then and its output only if it fails.

    Args:
        command: to run.
        root: where.
        step: what to call it.
        say: takes progress.
        more: variables beside this process's own.

    Raises:
        SetupError: it failed; shows the end of its output.
    """
    started = time.monotonic()
    say(f"  {step} ...")
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=root, env=_environ() | dict(more or {}), stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            _wait(process)
            if process.poll() is None:
                say(f"  {step} ... {time.monotonic() - started:.0f} s")
        if process.returncode != 0:
            output.seek(0)
            tail = "".join(output.readlines()[-LINES_OF_A_FAILURE:])
            raise SetupError(f"{' '.join(command)} failed:\n{tail}")
    say(f"  {step}: done in {time.monotonic() - started:.0f} s")


def _wait(process: subprocess.Popen) -> None:
    try:
        process.wait(SECONDS_BETWEEN_SIGNS)
    except subprocess.TimeoutExpired:
        return


def _environ() -> dict[str, str]:
    """The caller's environment; uv uses the Python that is there instead of fetching another."""
    return {"UV_PYTHON_DOWNLOADS": "never", **os.environ}


def main() -> int:
    """Make the environment and write the path of its Python; progress goes to standard error."""
    try:
        python = ensure(say=lambda line: _write_line(sys.stderr, line))
    except SetupError as error:
        _write_line(sys.stderr, str(error))
        return 1
    _write_line(sys.stdout, str(python))
    return 0


def _write_line(stream: TextIO, line: str) -> None:
    stream.write(f"{line}\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
