"""All tests, in the project's own environment.

    python3 -m tests

Sets up the environment and runs pytest in it. Tests that start servers run beside the others, since a
server in its start keeps one core busy; what they print follows at the end. With arguments there is one
pytest, which gets them.
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


def main() -> int:
    """Run pytest and return its exit status, or 1 where the environment cannot be made."""
    try:
        enter("tests", say=lambda line: print(line, flush=True))
    except SetupError as error:
        print(f"\nThe tests cannot run: {error}", file=sys.stderr)
        return 1
    # Models of a few layers: a second thread costs more than it gives, above all on a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import pytest

    if len(sys.argv) > 1:
        return pytest.main([*DEFAULTS, *sys.argv[1:]])
    with tempfile.NamedTemporaryFile("w+", prefix="tests_with_servers_", suffix=".log") as printed:
        print(f"What tests with servers print is in {printed.name} until it follows here", flush=True)
        words = [sys.executable, "-u", "-m", "pytest", *DEFAULTS, str(WITH_SERVERS)]
        beside = subprocess.Popen(words, stdout=printed, stderr=subprocess.STDOUT)
        status = pytest.main([*DEFAULTS, f"--ignore={WITH_SERVERS}", str(ALL)])
        print(f"\nWaiting for {WITH_SERVERS}", flush=True)
        status = beside.wait() or status
        printed.seek(0)
        print(printed.read())
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
