"""Benchmarks run from a copy of the repository, whether or not it is installed."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

from sgl_dynts.loading import say_when_loading

_FOLDER = Path(__file__).resolve().parent
_PLUG_IN = str(_FOLDER.parent / "python")
if _PLUG_IN not in sys.path:
    sys.path.append(_PLUG_IN)


class _OldNames:
    """Finds studies under the names that they had before they got a folder of their own."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, study = name.rpartition(".")
        if package != __name__ or study not in ("predictor_gap", "transfer", "wrong_traces"):
            return None
        sys.stderr.write(f"{name} is now {package}.studies.{study}\n")
        return spec_from_file_location(name, _FOLDER / "studies" / f"{study}.py")


sys.meta_path.append(_OldNames)  # pyright: ignore
if sys.argv[0] == "-m":  # python -m is still looking for the module that it is to run
    say_when_loading()
