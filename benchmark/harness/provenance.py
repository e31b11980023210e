"""What the benchmarks share: their parser, where a result comes from, the files results are kept in."""

import argparse
import json
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmark" / "results"


def parser_of(program: str, description: str | None) -> argparse.ArgumentParser:
    """Return a benchmark's parser, its description as written."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmark.{program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def provenance(note: str = "the GPU is simulated") -> dict[str, str]:
    """Return commit, command, SGLang's version and the device of this run, with a note on it."""
    return {
        "commit": commit() or "unknown",
        "command": command(running_program()),
        "sglang": version("sglang"),
        "device": f"one core of a {processor()}; {note}",
    }


def running_program() -> str:
    """Return the name of the command that runs, below `benchmark`."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removeprefix("benchmark.") if spec else Path(sys.argv[0]).stem


def command(program: str) -> str:
    """Return the line that started this benchmark."""
    return shlex.join(["python", "-m", f"benchmark.{program}", *sys.argv[1:]])


def keep(path: Path, result: dict[str, Any], settings: tuple[str, ...]) -> None:
    """Add a result to a file's JSON list, in place of an earlier one with the same settings.

    Args:
        path: of the file; made if need be.
        result: plain values.
        settings: keys whose values tell one result from another.
    """
    results = json.loads(path.read_text()) if path.exists() else []
    key = [result[name] for name in settings]
    kept = [old for old in results if [old.get(name) for name in settings] != key]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*kept, result], indent=1) + "\n")


def publish(path: Path, result: dict[str, Any], settings: tuple[str, ...]) -> None:
    """Print a result as one JSON line, and keep it as :func:`keep` does."""
    print(json.dumps(result), flush=True)
    keep(path, result, settings)


def commit() -> str | None:
    """Return the commit, marked if the working tree differs from it in more than kept results.

    None in a copy without the repository, or where there is no git.
    """
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!benchmark/results")
    return f"{commit}+changes" if commit and changed else commit or None


def _git(*words: str) -> str:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return ""
    line = ["git", "-C", str(ROOT), *words]
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()


def processor() -> str:
    """Return the name of this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
