"""The walk of one token in the developers' page names functions that are there; rooms have an order."""

import ast
import re
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[2] / "python"
PAGE = (PYTHON / "README.md").read_text()
WALK = re.findall(r"^\d\. `(\S+\.py)` `(\w+)`", PAGE, re.MULTILINE)
ROOMS = ("boot", "entry", "forward", "scheduling", "telling")


def names_of(path: Path) -> set[str]:
    """Every function and class of a file."""
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def test_the_walk_takes_at_most_six_files():
    assert 1 < len(WALK) == len({file for file, _ in WALK}) <= 6


@pytest.mark.parametrize(("file", "name"), re.findall(r"`(\w+/\w+\.py)` `(\w+)`", PAGE))
def test_what_the_page_names_is_there(file, name):
    assert name in names_of(PYTHON / "sglang_dynts" / file)


def test_ls_shows_the_rooms_in_the_order_in_which_a_request_meets_them():
    folders = [one.name for one in sorted((PYTHON / "sglang_dynts").iterdir()) if one.is_dir()]
    assert tuple(name for name in folders if not name.startswith("_") and name != "dashboards") == ROOMS


def test_no_room_holds_more_than_a_dozen_files():
    for room in (PYTHON / "sglang_dynts", *(PYTHON / "sglang_dynts" / name for name in ROOMS)):
        assert len(list(room.glob("*.py"))) <= 12, room
