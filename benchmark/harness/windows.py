"""The windows that a benchmark's command line and its defaults make."""

from argparse import Namespace

from sgl_dynts.config import DynTSConfig, Windows, in_flags
from sgl_dynts.window_flags import windows_given


def windows_of(args: Namespace, default: Windows) -> DynTSConfig:
    """Return the windows of a command line with :func:`add_window_flags`; ends it if they cannot be."""
    try:
        return windows_given(args).over(default).complete()
    except ValueError as error:
        raise SystemExit(f"error: {in_flags(error)}") from error
