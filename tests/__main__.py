"""All tests, in the project's own environment.

    python3 -m tests

Sets up the environment and runs pytest in it. A server with its client keeps one core busy, so tests with
servers run beside the others; some follow them, so that both take as long. What runs beside is printed
at the end. With arguments there is one pytest, which gets them.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sgl_dynts.environment import SetupError, enter

DEFAULTS = ("--durations=10",)
ALL = Path(__file__).parent
WITH_SERVERS = ALL / "e2e"
FOLLOW = (WITH_SERVERS / "test_families.py", WITH_SERVERS / "test_data_parallel_attention.py")
PYTEST = (sys.executable, "-u", "-m", "pytest", *DEFAULTS)


def main() -> int:
    """Run pytest and return its exit status, or 1 where the environment cannot be made."""
    try:
        enter("tests", say=lambda line: print(line, flush=True))
    except SetupError as error:
        print(f"\nThe tests cannot run: {error}", file=sys.stderr)
        return 1
    # Models of a few layers: a second thread costs more than it gives, above all on a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if len(sys.argv) > 1:
        return subprocess.call([*PYTEST, *sys.argv[1:]])
    with tempfile.NamedTemporaryFile("w+", prefix="tests_with_servers_", suffix=".log") as printed:
        print(f"What tests with servers print is in {printed.name} until it follows here", flush=True)
        words = [*PYTEST, *(f"--ignore={path}" for path in FOLLOW), str(WITH_SERVERS)]
        beside = subprocess.Popen(words, stdout=printed, stderr=subprocess.STDOUT)
        without = [str(path) for path in (ALL / "unit", ALL / "seam", ALL / "gpu")]
        others = subprocess.call([*PYTEST, *without, *map(str, FOLLOW)])
        print(f"\nWaiting for {WITH_SERVERS}", flush=True)
        status = beside.wait()
        printed.seek(0)
        print(printed.read())
    return status or others


if __name__ == "__main__":
    sys.exit(main())
