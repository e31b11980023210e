"""What the documents say of messages, flags and files is what the code has."""

import ast
import re
from pathlib import Path

import msgspec
import pytest

from sglang_dynts.server_args import DynTSServerArgs

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "python/**/*.md", "sgl_dynts/**/*.md", "benchmark/**/*.md")
    for path in ROOT.glob(pattern)
)
TROUBLESHOOTING = (ROOT / "python" / "TROUBLESHOOTING.md").read_text()


def texts_of(path: Path) -> list[str]:
    """Every string of a module, an f-string's varying parts left out."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [
        "\0".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        if isinstance(node, ast.JoinedStr)
        else str(node.value)
        for node in nodes
        if isinstance(node, ast.JoinedStr | ast.Constant)
    ]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    folders = (ROOT / "sgl_dynts", ROOT / "python" / "sglang_dynts")
    return [text for folder in folders for path in folder.rglob("*.py") for text in texts_of(path)]


@pytest.mark.parametrize("message", re.findall(r"^### `(.+)`$", TROUBLESHOOTING, re.MULTILINE))
def test_the_code_still_says_the_message(message, texts):
    assert any(message in text for text in texts)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text())
    for target in targets:
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_of_ours_exist(document):
    fields = {field.name for field in msgspec.structs.fields(DynTSServerArgs)}  # pyright: ignore
    named = set(re.findall(r"--((?:enable-)?dynts(?:-[a-z]+)*)", document.read_text()))
    assert {flag.replace("-", "_") for flag in named} <= fields
