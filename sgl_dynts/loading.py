"""A line before seconds of silence: torch and what stands on it take long to import."""

import sys
from importlib.machinery import ModuleSpec

SLOW = ("torch", "transformers", "sglang")


def say_loading(*packages: str) -> None:
    """Write to stderr what is about to be imported, if it is not there already."""
    if missing := [package for package in packages if package not in sys.modules]:
        sys.stderr.write(f"Loading {' and '.join(missing)}, which takes some seconds.\n")
        sys.stderr.flush()


def say_when_loading() -> None:
    """Write that line when the first slow package is asked for, whoever imports it."""
    sys.meta_path.insert(0, _Teller)  # pyright: ignore


class _Teller:
    """A finder that finds nothing, and tells of the first slow package once."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name in SLOW and _Teller in sys.meta_path:
            sys.meta_path.remove(_Teller)  # pyright: ignore
            say_loading(name)
        return None
