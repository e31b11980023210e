"""No file imports itself by way of others, not even inside a function."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["sgl_dynts", "benchmark", "python/sglang_dynts"]


def modules(package: Path) -> dict[str, Path]:
    """Dotted names to files; a package is its ``__init__.py``."""
    return {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import, in functions too; not what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from statements(ast.Module(child.orelse, []))
        else:
            yield from statements(child)


def imported(name: str, path: Path) -> Iterator[str]:
    """Dotted names of what a file imports: modules, or names in modules."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            continue
        parts = package.split(".")
        above = parts[: len(parts) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def circle(package: Path) -> list[str]:
    """One circle of imports among a package's files, empty where there is none."""
    known = modules(package)
    graph = {
        name: {
            found
            for target in imported(name, path)
            for found in (target if target in known else target.rpartition(".")[0],)
            if found in known
        }
        for name, path in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_imports_itself_by_way_of_others(package):
    found = circle(ROOT / package)
    assert not found, " <- ".join(found)


FIRST = {
    "at the top": "import room.b",
    "in a function": "def f():\n    from room import b",
    "of a name": "from room.b import thing",
    "relative": "from .b import thing",
    "of a neighbour": "from . import b",
    "where types are not checked": "if TYPE_CHECKING:\n    pass\nelse:\n    import room.b",
}


@pytest.fixture
def room(tmp_path) -> Path:
    """A package of two files, the second of which imports the first."""
    folder = tmp_path / "room"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "b.py").write_text("from room.a import other")
    return folder


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_a_circle_is_found(room, first):
    (room / "a.py").write_text(first)
    found = circle(room)
    assert set(found) == {"room.a", "room.b"}
    assert found[0] == found[-1]


def test_what_only_a_type_checker_reads_closes_no_circle(room):
    (room / "a.py").write_text("if TYPE_CHECKING:\n    import room.b")
    assert not circle(room)
