"""All tests, in the project's own environment.

    python3 -m tests

Sets up the environment and runs pytest in it; arguments are passed on to pytest.
"""

import os
import sys

from sgl_dynts.environment import SetupError, enter

DEFAULTS = ("--durations=5",)


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

    return pytest.main([*DEFAULTS, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
