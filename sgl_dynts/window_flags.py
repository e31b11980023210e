"""Budget, local window and keep ratio on a command line; one that is not given is None, 0 is refused."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import Any

from sgl_dynts.config import WINDOW_FIELDS, Windows, flag_of

KINDS: dict[str, Callable[[str], Any]] = {"budget": int, "local_window": int, "keep_ratio": float}


def window_number(name: str) -> Callable[[str], Any]:
    """Return a ``type`` for an argument that holds one field of :class:`Windows`, checked as there."""

    def read(text: str) -> Any:
        value = KINDS[name](text)
        try:
            Windows(**{name: value})
        except ValueError as error:
            raise ArgumentTypeError(str(error).removeprefix(f"{name}=")) from error
        return value

    read.__name__ = KINDS[name].__name__
    return read


def add_window_flags(parser: ArgumentParser, default: str, purpose: str = "") -> None:
    """Add ``--budget``, ``--local-window`` and ``--keep-ratio``.

    Args:
        parser: a command's.
        default: whose values hold where one is not given, for the help.
        purpose: what begins each help text.
    """
    helps = ("most KV tokens of a request", "newest tokens, which stay", "share of the others that stays")
    for name, what in zip(WINDOW_FIELDS, helps, strict=True):
        parser.add_argument(
            flag_of(name), type=window_number(name), help=f"{purpose}{what}; default: {default}"
        )


def windows_given(args: Namespace) -> Windows:
    """Return what a command line says of them."""
    return Windows(**{name: getattr(args, name) for name in WINDOW_FIELDS})
