"""Benchmarks run from a copy of the repository, whether or not it is installed."""

import sys
from pathlib import Path

_PLUG_IN = str(Path(__file__).resolve().parent.parent / "python")
if _PLUG_IN not in sys.path:
    sys.path.append(_PLUG_IN)
