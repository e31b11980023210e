"""Programs that a model wrote: which block of its text they are in, and whether they run."""

import html
import re
import resource
import secrets
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

FENCE = re.compile(r"^(?P<quote>(?:[ \t]*>)*)[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^\r\n`]*)\r?$")
HTML = re.compile(
    r"<pre\b[^<>]*>\s*<code\b(?P<attributes>[^<>]*)>(?P<code>[^<]*)</code>\s*</pre>", re.IGNORECASE
)
LANGUAGE = re.compile(r"lang(?:uage)?-(\w+)")
IN_CODE = re.compile(r"(?P<long>\"{3}|'{3})|#|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'")
CLOSES = {quotes: re.compile(rf"(?:\\.|[^\\])*?{quotes}") for quotes in ('"""', "'''")}
LONGEST_STRING = 500
"""Lines of a string that holds a fence; beyond, a string that is never closed is likelier."""
PYTHON = re.compile(r"[{.]*\s*(?:i?python|py)[\d.]*\b", re.IGNORECASE)
RETURN = re.compile(r"^[ \t]*(?:return|yield)\b", re.MULTILINE)
BEGINNING = re.compile(r"^(?:from|import|def|async def|class|@)\b", re.MULTILINE)
BYTE_ORDER_MARK = "\ufeff"
NAME = "answer"
"""The program's module: not the main one, so that its own trial runs stay out."""
PROGRAM_SECONDS = 10
PROGRAM_BYTES = 1 << 30
MOST_OUTPUT = 16 << 20
"""Bytes that a program may print, and write to one file."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code; ``info`` is what stands behind its fence, such as a language."""

    info: str
    code: str


def code_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a text, by backticks or tildes; the last one need not be closed."""
    blocks: list[Block] = []
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        found = FENCE.match(lines[at])
        if found:
            block, at = _block(lines, at, found)
            blocks.append(block)
        at += 1
    return blocks


def _block(lines: list[str], start: int, opening: re.Match[str]) -> tuple[Block, int]:
    """Return the block that opens in a line, and the line that closes it.

    A fence within a long string of the program closes nothing, if the string ends later.
    """
    info = opening["info"].strip()
    quotation = (
        re.compile(rf"(?:[ \t]*>){{1,{opening['quote'].count('>')}}} ?") if opening["quote"] else None
    )
    code: list[str] = []
    quotes, first = "", 0
    for line in lines[start + 1 :]:
        unquoted = quotation.sub("", line, count=1) if quotation else line
        closing = FENCE.match(unquoted)
        if closing and not closing["info"].strip() and closing["fence"].startswith(opening["fence"]):
            if not quotes:
                return Block(info, _dedented(code)), start + 1 + len(code)
            first = first or len(code)
        if first and len(code) - first > LONGEST_STRING:
            break
        if not info or PYTHON.match(info):
            quotes = _open_quotes(unquoted, quotes)
        code.append(unquoted)
    code = code[: first or None]
    return Block(info, _dedented(code)), start + 1 + len(code)


def _open_quotes(line: str, quotes: str) -> str:
    """Return the quotes of the long string that is open behind a line, given those before it."""
    at = 0
    while True:
        found = CLOSES[quotes].match(line, at) if quotes else IN_CODE.search(line, at)
        if found is None or found[0] == "#":
            return quotes
        quotes = "" if quotes else found["long"] or ""
        at = found.end()


def program_of(text: str, name: str) -> str:
    """Return the program that defines a function: the last block that does.

    Without such a block the last one of Python, else the last one of no language, else the text from its
    first line of a program on.

    Args:
        text: what the model wrote.
        name: of the function.
    """
    text = text.replace(BYTE_ORDER_MARK, "")
    if not any(FENCE.match(line) for line in text.split("\n")):
        text = HTML.sub(_fenced, text)
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


def _fenced(block: re.Match[str]) -> str:
    language = LANGUAGE.search(block["attributes"])
    return f"\n```{language[1] if language else ''}\n{html.unescape(block['code'])}\n```\n"


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

    A program that prints more than `MOST_OUTPUT` fails: what it prints is kept in a file of that size.
    Each part is compiled by itself, so that it may begin with ``from __future__``. All share their names.
    """
    reached = secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-"],
                input=_script((*parts, f"print({reached!r})")),
                cwd=folder,
                env={},
                stdout=output,
                stderr=subprocess.DEVNULL,
                timeout=PROGRAM_SECONDS,
                preexec_fn=_limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        output.seek(0)
        return done.returncode == 0 and output.read().rstrip().endswith(reached.encode())


def _script(parts: Sequence[str]) -> bytes:
    """Return the program that runs the parts; half a character pair is written as its escape."""
    spelled = [part.encode("utf-8", "backslashreplace").decode() for part in parts]
    lines = ["import sys, types", f"answer = sys.modules[{NAME!r}] = types.ModuleType({NAME!r})"]
    lines += ["names = vars(answer)"]
    lines += [f"exec(compile({part!r}, 'part', 'exec', dont_inherit=True), names)" for part in spelled]
    return "\n".join(lines).encode()


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (PROGRAM_BYTES, PROGRAM_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_OUTPUT, MOST_OUTPUT))
    resource.setrlimit(resource.RLIMIT_CPU, (PROGRAM_SECONDS, PROGRAM_SECONDS))


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)) + "\n"
