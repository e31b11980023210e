"""Text files that are there as a whole or not at all."""

from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a file so that an interruption leaves the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)
