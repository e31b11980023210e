"""Commands that made and judged the demo's model: they are no part of what is installed any more."""

import runpy
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def go_on(name: str) -> None:
    """Run ``benchmark.ledgers.<name>`` in place of ``sgl_dynts.demo.<name>``, and say so."""
    new = f"benchmark.ledgers.{name}"
    if not (CHECKOUT / "benchmark" / "ledgers").is_dir():
        sys.exit(f"error: this command is now python -m {new}, in a checkout of the repository")
    print(f"python -m sgl_dynts.demo.{name} is now python -m {new}", file=sys.stderr)
    sys.path.insert(0, str(CHECKOUT))
    runpy.run_module(new, run_name="__main__", alter_sys=True)
