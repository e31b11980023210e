"""JSON lines, read with messages that name file and line, and continued after a run was stopped."""

import json
from pathlib import Path
from typing import Any


class LineError(ValueError):
    """A line that cannot be used; says which file, which line and what to do."""


def parse_object(line: str, place: str) -> dict[str, Any]:
    """Return the object of one line.

    Args:
        line: its text.
        place: file and line for messages, ``file:3``.

    Raises:
        LineError: it is not JSON, or no object.
    """
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise LineError(f"{place}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(found, dict):
        raise LineError(f"{place}: {type(found).__name__} where an object is expected")
    return found


def check_fields(
    found: dict[str, Any], required: dict[str, type], optional: dict[str, type], place: str
) -> None:
    """Refuse an object whose fields are not the ones expected.

    Raises:
        LineError: a field is unknown, missing or of another kind.
    """
    kinds = required | optional
    for name in sorted(found.keys() - kinds.keys()):
        raise LineError(f"{place}: field {name!r} is unknown; known: {', '.join(kinds)}")
    for name in required:
        if name not in found:
            raise LineError(f"{place}: field {name!r} is missing")
    for name, value in found.items():
        if not isinstance(value, kinds[name]):
            raise LineError(
                f"{place}: {name} is {type(value).__name__}, {kinds[name].__name__} is expected"
            )


def drop_unfinished_line(path: Path) -> None:
    """Cut what follows a file's last line break: a run was stopped while it wrote that."""
    data = path.read_bytes() if path.exists() else b""
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
