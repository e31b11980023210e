"""Programs that a model wrote: which block of its text they are in, and whether they run."""

import re
import resource
import secrets
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

FENCE = re.compile(r"^[ \t>]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^\r\n`]*)\r?$")
PYTHON = re.compile(r"[{.]*\s*(?:i?python|py)[\d.]*\b", re.IGNORECASE)
RETURN = re.compile(r"^[ \t]*(?:return|yield)\b", re.MULTILINE)
BEGINNING = re.compile(r"^(?:from|import|def|async def|class|@)\b", re.MULTILINE)
BYTE_ORDER_MARK = "\ufeff"
NAME = "answer"
"""The program's module: not the main one, so that its own trial runs stay out."""
PROGRAM_SECONDS = 10
PROGRAM_BYTES = 1 << 30


@dataclass(frozen=True)
class Block:
    """A fenced block of code; ``info`` is what stands behind its fence, such as a language."""

    info: str
    code: str


def code_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a text, by backticks or tildes; the last one need not be closed."""
    blocks: list[Block] = []
    fence, info, lines = "", "", list[str]()
    for line in text.split("\n"):
        found = FENCE.match(line)
        if not fence:
            if found:
                fence, info, lines = found["fence"], found["info"].strip(), []
        elif found and not found["info"].strip() and found["fence"].startswith(fence):
            blocks.append(Block(info, _dedented(lines)))
            fence = ""
        else:
            lines.append(line)
    return [*blocks, Block(info, _dedented(lines))] if fence else blocks


def program_of(text: str, name: str) -> str:
    """Return the program that defines a function: the last block that does.

    Without such a block the last one of Python, else the last one of no language, else the text from its
    first line of a program on.

    Args:
        text: what the model wrote.
        name: of the function.
    """
    text = text.replace(BYTE_ORDER_MARK, "")
    blocks = [block for block in code_blocks(text) if block.code.strip()]
    python = [block for block in blocks if PYTHON.match(block.info)]
    unnamed = [block for block in blocks if not block.info]
    defines = _definition_of(name)
    choices = [[block for block in (*python, *unnamed) if defines.search(block.code)], python, unnamed]
    best = next((some for some in choices if some), [])
    if best:
        return max(best, key=blocks.index).code
    begins = BEGINNING.search(text) if defines.search(text) else None
    return text[begins.start() :] if begins else text


def _definition_of(name: str) -> re.Pattern[str]:
    word = re.escape(name)
    return re.compile(
        rf"^[ \t]*(?:(?:async def|def|class)\s+{word}\b|{word}\s*(?::[^=\n]+)?=(?!=))", re.MULTILINE
    )


def completed(code: str, name: str, question: str) -> str:
    """Return a program that is a function's body alone with its head, the question; else as it is."""
    if _definition_of(name).search(code) or not RETURN.search(code):
        return code
    body = textwrap.dedent(code.strip("\n"))
    return f"{question}\n{textwrap.indent(body, '    ')}\n"


def runs(*parts: str) -> bool:
    """Whether the parts of a program run one after the other without an error, within time and memory.

    Each part is compiled by itself, so that it may begin with ``from __future__``. All share their names.
    """
    reached = secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-"],
                input=_script((*parts, f"print({reached!r})")),
                cwd=folder,
                env={},
                capture_output=True,
                timeout=PROGRAM_SECONDS,
                preexec_fn=_limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and done.stdout.rstrip().endswith(reached.encode())


def _script(parts: Sequence[str]) -> bytes:
    """Return the program that runs the parts; half a character pair is written as its escape."""
    spelled = [part.encode("utf-8", "backslashreplace").decode() for part in parts]
    lines = ["import sys, types", f"answer = sys.modules[{NAME!r}] = types.ModuleType({NAME!r})"]
    lines += ["names = vars(answer)"]
    lines += [f"exec(compile({part!r}, 'part', 'exec', dont_inherit=True), names)" for part in spelled]
    return "\n".join(lines).encode()


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (PROGRAM_BYTES, PROGRAM_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PROGRAM_SECONDS, PROGRAM_SECONDS))


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)) + "\n"
