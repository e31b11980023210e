"""Write plain texts of several kinds for `benchmark.likelihood`, from what is installed and by seed.

    python -m benchmark.texts /tmp/texts --seed 1 --per-kind 12
    python -m benchmark.texts /tmp/others --seed 1 --per-kind 4 --split choice

A file is called KIND-NUMBER.txt. `prose` are passages of Newton's Opticks, which a wheel that SGLang
needs brings along, and of the language reference. `code` is the standard library. `recall` states facts
early and uses them late. `reasoning` is worked problems and chains of variables. `table` is long lists of
similar lines. The splits share no text: what is chosen on one can be reported on the other.
`calibration.txt` is of docstrings, of files that no text is taken from.
"""

import ast
import pydoc_data.topics as topics
import random
import re
import sysconfig
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from benchmark.forced.stories import reasoning, recall
from benchmark.harness.provenance import parser_of

LENGTH = 6000
"""Characters of a text, at least."""
SPLITS = ("report", "choice")
CALIBRATION = "calibration.txt"
CALIBRATION_LENGTH = 60_000
BOOK = ("apache-tvm-ffi", "Isaac.Newton-Opticks.txt")
FOR_CALIBRATION = 5
"""One file of the standard library in so many is read for docstrings alone."""


def standard_library() -> list[Path]:
    """Return the modules of the standard library that are long enough, in order."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [*root.glob("*.py"), *root.glob("[a-z]*/*.py")]
    left_out = ("site-packages", "test", "idlelib", "pydoc_data", "encodings", "lib2to3")
    return sorted(
        path
        for path in found
        if path.relative_to(root).parts[0] not in left_out and path.stat().st_size > 2 * LENGTH
    )


def book() -> str:
    """Return a public-domain book out of an installed wheel, empty if it is not there."""
    package, name = BOOK
    try:
        found = [path for path in files(package) or () if path.name == name]
    except PackageNotFoundError:
        return ""
    return found[0].read_text(encoding="utf-8") if found else ""


def passages_of(text: str) -> list[str]:
    """Split a text into passages of whole paragraphs."""
    passages, current = [], ""
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        current += paragraph.strip("\n") + "\n\n"
        if len(current) > LENGTH:
            passages.append(current)
            current = ""
    return passages


def prose() -> list[str]:
    """Every passage of prose."""
    manual = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    return [*passages_of(book()), *passages_of(manual)]


def code() -> list[str]:
    """A passage of each module of the standard library, from a definition on."""
    found = []
    for number, path in enumerate(standard_library()):
        text = path.read_text(encoding="utf-8", errors="ignore")
        start = re.search(r"^(class|def) ", text[LENGTH // 2 :], re.MULTILINE)
        part = text[LENGTH // 2 + (start.start() if start else 0) :][: 2 * LENGTH]
        if number % FOR_CALIBRATION and len(part) > LENGTH:
            found.append(part)
    return found


def table() -> list[str]:
    """Lists of similar lines: the tables of encodings."""
    root = Path(sysconfig.get_path("stdlib")) / "encodings"
    texts = [path.read_text() for path in sorted(root.glob("*.py"))]
    starts = [(text, text.find("decoding_table = (")) for text in texts]
    return [text[start : start + 2 * LENGTH] for text, start in starts if start > 0]


def docstrings() -> str:
    """Long docstrings of the modules that `code` leaves out."""
    found: list[str] = []
    for path in standard_library()[::FOR_CALIBRATION]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                found += [text] if len(text) > 300 else []
    return "\n\n".join(found)[:CALIBRATION_LENGTH]


FOUND: dict[str, Callable[[], list[str]]] = {"prose": prose, "code": code, "table": table}
MADE: dict[str, Callable[[random.Random, int], str]] = {"recall": recall, "reasoning": reasoning}
KINDS = ("prose", "code", "recall", "reasoning")
"""The kinds that a policy is judged by, beside ``table``."""


def texts_of(kind: str, split: str, seed: int, count: int) -> Iterator[str]:
    """Yield texts of a kind.

    Args:
        kind: of :data:`FOUND` or :data:`MADE`.
        split: texts of different splits have nothing in common.
        seed: of the drawing.
        count: how many; fewer where not so many are found.
    """
    draw = random.Random(f"{kind} {split} {seed}")
    if kind in MADE:
        for _ in range(count):
            yield MADE[kind](draw, LENGTH)
        return
    own = FOUND[kind]()[SPLITS.index(split) :: len(SPLITS)]
    yield from draw.sample(own, min(count, len(own)))


def main(arguments: list[str] | None = None) -> None:
    """Write the files."""
    parser = parser_of("texts", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="+", default=[*KINDS, "table"], choices=[*FOUND, *MADE])
    parser.add_argument("--per-kind", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0])
    args = parser.parse_args(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    for kind in args.kinds:
        for number, text in enumerate(texts_of(kind, args.split, args.seed, args.per_kind)):
            (args.folder / f"{kind}-{number:02d}.txt").write_text(text, encoding="utf-8")
    (args.folder / CALIBRATION).write_text(docstrings(), encoding="utf-8")


if __name__ == "__main__":
    main()
