"""Named steps on a machine with a GPU, one after the other, each ended at its limit.

    python3 -m benchmark.gpu                                   # what there is, and how long it may take
    python3 -m benchmark.gpu install tests whole_pool --shape llama-8b --minutes 30 --out gpu-results
    python3 -m benchmark.gpu whole_pool --tiny                 # a tiny model on any machine

Any Python 3.11 starts it; ``install`` prepares the one that runs the others. A step prints its forecast
before it measures. What it prints is kept in --out, with its results and the logs of its servers. A step
that fails does not keep the next from running, and is told at the end. When --minutes are over, the step
that runs is ended and the others are left out.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.gpu import install
from benchmark.harness.provenance import ROOT, commit, parser_of

SECONDS_TO_END = 60
TIMED_OUT = 124
NOT_INSTALLED = 127
TINY_LIMIT = 900
"""Seconds of a step with the tiny model: a server on a busy CPU needs minutes to start."""
TINY_START = ("--start-seconds", str(TINY_LIMIT // 2))


@dataclass(frozen=True)
class Step:
    """One command: what it is for, the seconds after which it is ended, its arguments with --tiny.

    ``bench`` says whether it takes --out and --commit, ``serves`` whether it starts servers.
    """

    purpose: str
    words: tuple[str, ...]
    limit: int
    tiny: str = ""
    bench: bool = True
    serves: bool = False


def _bench(name: str, purpose: str, limit: int, tiny: str, *, serves: bool = True) -> Step:
    return Step(purpose, (f"benchmark.gpu.{name}",), limit, tiny, serves=serves)


def _tests(purpose: str, limit: int, *files: str) -> Step:
    paths = [f"tests/gpu/test_{file}.py" for file in files]
    return Step(purpose, ("pytest", "-m", "gpu", "-q", *paths), limit, bench=False)


_SHORT = "--question-len 20 --batch 1 4 --output-len"
STEPS = {
    "install": Step("prepares Python and SGLang", ("benchmark.gpu.install",), 300, bench=False),
    "tests": _tests("kernels against their references", 300, "kernels", "attention"),
    "serving_tests": _tests("whole servers of tiny models", 3600, "serving", "training"),
    "kernels": _bench(
        "kernels",
        "compaction and scoring alone",
        120,
        "--due 1 4 --head-due 1 4 --batch 1 8 --copy-mib 4",
        serves=False,
    ),
    "attention": _bench(
        "attention",
        "decode over scattered slots",
        120,
        "--batch 1 4 --copy-mib 4 --layers 2",
        serves=False,
    ),
    "untriggered": _bench("untriggered", "same tokens, same time, no compaction", 600, f"{_SHORT} 40"),
    "fixed_batch": _bench("fixed_batch", "the same requests on both sides", 10800, f"{_SHORT} 150"),
    "shared_prefix": _bench(
        "shared_prefix",
        "what the prefix cache gives",
        1800,
        "--groups 2 --prompts-per-group 3 --prefix-len 32 --question-len 8 --output-len 80 --batch 2",
    ),
    "whole_pool": _bench("whole_pool", "tokens per second of a full server", 900, ""),
    "crowds": _bench("crowds", "whether a crowd loses a request", 1800, "--servers 1 --requests 12"),
}


def main() -> None:
    """Run the steps that are named; exits with 1 if one failed."""
    began = time.monotonic()
    args = parse()
    print_steps(args.steps or STEPS)
    if not args.steps:
        return
    if not (args.commit or commit()):
        raise SystemExit("no repository is here to ask for the commit; name it with --commit")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = run_all(args, began + 60 * args.minutes)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("gpu", __doc__)
    add = parser.add_argument
    add("steps", nargs="*", metavar="STEP", help=f"in this order; of {', '.join(STEPS)}")
    add("--shape", default="qwen-7b", help="of the model that is measured, with dummy weights")
    add("--tiny", action="store_true", help="the tiny model with short requests, on any machine")
    add("--minutes", type=float, default=240, help="after which everything has ended")
    add("--out", type=Path, default=ROOT / "build" / "gpu", help="folder of results and logs")
    add("--commit", help="of this code; default: what git says")
    args = parser.parse_args()
    unknown = [name for name in args.steps if name not in STEPS]
    if unknown:
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    return args


def print_steps(names: Sequence[str] | dict[str, Step]) -> None:
    """Print what there is, or what will run."""
    for name in names:
        print(f"{name:14}at most {STEPS[name].limit / 60:5.1f} minutes   {STEPS[name].purpose}")
    print(flush=True)


def words_of(name: str, args: argparse.Namespace) -> list[str]:
    """Return a step's module and arguments."""
    step = STEPS[name]
    if not step.bench:
        return list(step.words)
    shape = [] if name == "crowds" else ["--shape", "tiny" if args.tiny else args.shape]
    words = [*step.words, *shape]
    words += ["--out", str(args.out / f"{name}.json")]
    words += ["--commit", args.commit] if args.commit else []
    if step.serves:
        words += ["--logs", str(args.out / name), *(TINY_START if args.tiny else ())]
    return words + (step.tiny.split() if args.tiny else [])


def run_all(args: argparse.Namespace, deadline: float) -> list[str]:
    """Run every step and return the names of those that failed or were left out."""
    failed = []
    for name in args.steps:
        left = deadline - time.monotonic() - SECONDS_TO_END
        limit = min(left, TINY_LIMIT if args.tiny else STEPS[name].limit)
        started = time.monotonic()
        status = TIMED_OUT if left <= 0 else run(name, words_of(name, args), limit, args.out)
        print(f"== {name}: status {status} after {time.monotonic() - started:.0f} s", flush=True)
        if status:
            failed.append(name)
    return failed


def run(name: str, words: Sequence[str], limit: float, out: Path) -> int:
    """Run one step, its output on the screen and in a file.

    It is asked to end first, so that it can end its servers. Nothing but ``install`` runs before there is
    a Python to run it.

    Returns:
        Its exit status, TIMED_OUT if it had to be ended, NOT_INSTALLED without a Python.
    """
    prepared = install.located()
    if prepared is None and name != "install":
        print(f"nothing is installed to run {name} with; run the step install first", flush=True)
        return NOT_INSTALLED
    runner = prepared or install.Interpreter(Path(sys.executable))
    command = [runner.python, "-m", *words]
    print(f"== {name}: python -m {' '.join(words)}", flush=True)
    with subprocess.Popen(["tee", out / f"{name}.log"], stdin=subprocess.PIPE) as tee:
        process = subprocess.Popen(
            command, cwd=ROOT, env=runner.environ(), stdout=tee.stdin, stderr=subprocess.STDOUT
        )
        return ended(process, limit)


def ended(process: subprocess.Popen, limit: float) -> int:
    """Wait for a process, end it at its limit, and return its status."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return TIMED_OUT


if __name__ == "__main__":
    main()
