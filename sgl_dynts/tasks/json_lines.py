"""JSON lines, read with messages that name file and line, and continued after a run was stopped.

A file is UTF-8, and a line ends at a line feed and nowhere else: U+2028 and a form feed may be in a text.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OTHER_FILES = (
    (b"\x1f\x8b", "gzip", "unpack it"),
    (b"PK\x03\x04", "zip", "unpack it"),
    (b"BZh", "bzip2", "unpack it"),
    (b"\xfd7zXZ", "xz", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unpack it"),
    (b"PAR1", "Parquet", "write it as JSON lines"),
    (b"\xff\xfe", "UTF-16", "write it as UTF-8"),
    (b"\xfe\xff", "UTF-16", "write it as UTF-8"),
)
HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
ONE_A_LINE = "one JSON object a line is expected, as `jq -c` writes it"


class LineError(ValueError):
    """A line that cannot be used; says which file, which line and what to do."""


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file and line for messages, ``file:3``; the line with its end) for each line of a file.

    Raises:
        LineError: the file is packed or no UTF-8.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            if number == 1:
                line = _begun(line, place)
            yield place, _decoded(line, place)


def parse_object(line: str, place: str) -> dict[str, Any]:
    """Return the object of one line.

    Args:
        line: its text.
        place: file and line for messages, ``file:3``.

    Raises:
        LineError: it is not JSON, no object, or holds what cannot be written again.
    """
    found = _parsed(line, place)
    if isinstance(found, list):
        raise LineError(f"{place}: list where an object is expected; {ONE_A_LINE}")
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
            hint = (
                "; write it in quotes"
                if kinds[name] is str and not isinstance(value, list | dict)
                else ""
            )
            raise LineError(
                f"{place}: {name} is {type(value).__name__}, {kinds[name].__name__} is expected{hint}"
            )


def drop_unfinished_line(path: Path) -> None:
    """Cut what follows a file's last line break: a run was stopped while it wrote that."""
    data = path.read_bytes() if path.exists() else b""
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)


def _begun(line: bytes, place: str) -> bytes:
    """Return a file's first line without a byte order mark."""
    for signature, kind, remedy in OTHER_FILES:
        if line.startswith(signature):
            raise LineError(f"{place}: the file is {kind}; {remedy}: UTF-8 text is expected")
    return line.removeprefix(BYTE_ORDER_MARK)


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError(
            f"{place}: byte 0x{line[error.start]:02x} at column {error.start + 1} is not UTF-8; "
            "write the file as UTF-8"
        ) from None


def _parsed(line: str, place: str) -> Any:
    def refuse(constant: str) -> None:
        raise LineError(f"{place}: {constant} is not JSON; write a number, or null")

    def pairs(found: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in found:
            if name in values:
                raise LineError(f"{place}: field {name!r} is there twice; leave one out")
            values[name] = value
        return values

    try:
        found = json.loads(line, parse_constant=refuse, object_pairs_hook=pairs)
        if "\\ud" in line.lower():
            _check_whole_characters(found, place)
        return found
    except json.JSONDecodeError as error:
        begins = line.strip() in ("{", "[")
        hint = f"; {ONE_A_LINE}" if begins else ""
        raise LineError(f"{place}: not JSON ({error.msg} at column {error.colno}){hint}") from None
    except RecursionError:
        raise LineError(
            f"{place}: brackets are nested too deeply; at most some hundreds are read"
        ) from None
    except LineError:
        raise
    except ValueError:  # Python reads no integer of more than 4,300 digits
        raise LineError(f"{place}: an integer has too many digits; write it in quotes") from None


def _check_whole_characters(found: Any, place: str) -> None:
    half = HALF_A_CHARACTER.search(json.dumps(found, ensure_ascii=False))
    if half:
        raise LineError(f"{place}: {half[0]!a} is half of a character; leave it out")
