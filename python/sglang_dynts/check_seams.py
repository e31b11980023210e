"""Which of the places where SGLang is touched the installed release has moved.

``python -m sglang_dynts.check_seams`` compares the installed SGLang with ``seams.json``, which tells of
the release that this one is tested with: every name we import from SGLang, and the signature and source
of every function we hook or override. ``--record`` writes that file anew. Ends with 1 if anything is
missing or takes other arguments. Imports nothing of SGLang but what it looks at, since that may be gone.
"""

import argparse
import ast
import hashlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sgl_dynts.loading import say_loading

PACKAGE = Path(__file__).parent
RECORD = PACKAGE / "seams.json"
GONE, ARGUMENTS, BODY = "gone", "takes other arguments", "body changed"


@dataclass(frozen=True)
class Difference:
    """One place that is not as recorded: its path, which of our files use it, and what became of it."""

    target: str
    used_by: tuple[str, ...]
    what: str

    @property
    def breaks(self) -> bool:
        """Whether our code cannot work with it; a changed body has to be read."""
        return self.what != BODY


def recorded() -> dict[str, Any]:
    """Return what was recorded of the tested release."""
    return json.loads(RECORD.read_text())


def installed_release() -> str:
    """Return the version of the SGLang that is imported, which may lie before the installed one."""
    return import_module("sglang").__version__


def compare(record: dict[str, Any]) -> list[Difference]:
    """List every place where the installed SGLang is not as recorded."""
    _make_importable()
    found = [_compare_one(target, then) for target, then in sorted(record["targets"].items())]
    return [difference for difference in found if difference is not None]


def describe(record: dict[str, Any], differences: list[Difference]) -> str:
    """Put the differences on lines for people."""
    release = installed_release()
    lines = [f"SGLang {release}, compared with {record['sglang']} in {len(record['targets'])} places:"]
    lines += [f"  {one.what:22} {one.target}  ({', '.join(one.used_by)})" for one in differences]
    broken = sum(one.breaks for one in differences)
    lines.append(f"{broken} broken, {len(differences) - broken} to be read")
    return "\n".join(lines)


def check_release() -> None:
    """Refuse another release of SGLang than the tested one.

    Raises:
        RuntimeError: naming both releases and what is gone.
    """
    record = recorded()
    release = installed_release()
    if release == record["sglang"]:
        return
    broken = [f"{one.target} {one.what}" for one in compare(record) if one.breaks]
    found = "; ".join(broken) or "nothing that is hooked is gone, but nothing is tested there"
    raise RuntimeError(
        f"DynTS cannot run in SGLang {release}: this release of sgl-dynts is tested with "
        f"{record['sglang']}. In {release}: {found}. Install sglang=={record['sglang']}, or a release of "
        "sgl-dynts that names yours; python -m sglang_dynts.check_seams lists what has moved"
    )


def record_installed() -> dict[str, Any]:
    """Describe every place that we touch in the installed release."""
    from sglang_dynts import seams

    _make_importable()
    users: dict[str, set[str]] = {}
    for file, target in [*_imported_names(), *_overridden_methods()]:
        users.setdefault(target, set()).add(file)
    for target in (*seams.TARGETS, *seams.HOST_CPU_TARGETS):
        users.setdefault(target, set()).add("seams.py")
    targets = {}
    for target, files in sorted(users.items()):
        thing = _resolve(target)
        if thing is not None:  # a method of our own subclass that overrides nothing
            targets[target] = {"used_by": sorted(files), **_fingerprint(thing)}
    return {"sglang": version("sglang"), "targets": targets}


def _make_importable() -> None:
    """Let modules be imported here that need an operator of a GPU; nothing of them is called."""
    import torch

    from sglang_dynts import operators

    if not torch.cuda.is_available():
        operators.stand_in_for_tree_masks()


def _compare_one(target: str, then: dict[str, Any]) -> Difference | None:
    thing = _resolve(target)
    used_by = tuple(then["used_by"])
    if thing is None:
        return Difference(target, used_by, GONE)
    now = _fingerprint(thing)
    if now["signature"] != then["signature"]:
        return Difference(target, used_by, ARGUMENTS)
    return Difference(target, used_by, BODY) if now["source"] != then["source"] else None


def _resolve(target: str) -> Any:
    """Return what a dotted path names, before any hook was put on it; None if there is no such thing."""
    owner, _, name = target.rpartition(".")
    try:
        thing = getattr(_theirs(pkgutil.resolve_name(owner)), name)
    except (ImportError, AttributeError):
        return None
    function = thing.__func__ if inspect.ismethod(thing) else thing
    return inspect.unwrap(function) if callable(function) else function


def _theirs(owner: Any) -> Any:
    """Return SGLang's class where a subclass of ours has taken its place."""
    if not inspect.isclass(owner):
        return owner
    return next(one for one in owner.__mro__ if one.__module__.split(".")[0] != PACKAGE.name)


def _fingerprint(thing: Any) -> dict[str, str | None]:
    """Signature of a function, and a digest of its source; of anything else only that it is there."""
    if not inspect.isfunction(thing):
        return {"signature": None, "source": None}
    parameters = inspect.signature(thing).parameters.values()
    source = hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()[:16]
    return {
        "signature": ", ".join(f"{one.kind.name.lower()} {one.name}" for one in parameters),
        "source": source,
    }


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def _imports(tree: ast.Module) -> dict[str, str]:
    """Map the names that a file imports from SGLang to their dotted paths."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _imported_names() -> Iterator[tuple[str, str]]:
    for file, tree in _trees():
        for target in _imports(tree).values():
            yield file, target


def _overridden_methods() -> Iterator[tuple[str, str]]:
    for file, tree in _trees():
        imported = _imports(tree)
        for node in ast.walk(tree):
            bases = node.bases if isinstance(node, ast.ClassDef) else []
            names = [
                imported[base.id] for base in bases if isinstance(base, ast.Name) and base.id in imported
            ]
            for base in names:
                methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]  # pyright: ignore
                for method in methods:
                    yield file, f"{base}.{method.name}"


def main(argv: list[str] | None = None) -> int:
    """Compare, or record."""
    parser = argparse.ArgumentParser(prog="python -m sglang_dynts.check_seams", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write seams.json from what is installed")
    args = parser.parse_args(argv)
    say_loading("sglang")
    if args.record:
        RECORD.write_text(json.dumps(record_installed(), indent=1) + "\n")
    record = recorded()
    differences = compare(record)
    sys.stdout.write(describe(record, differences) + "\n")
    return int(any(one.breaks for one in differences))


if __name__ == "__main__":
    raise SystemExit(main())
