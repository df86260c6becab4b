"""docs/architecture.md has each module of the package in a table, by its full path."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from tests.docsite.pages import ROOT, text_of

PAGE = PurePosixPath("docs/architecture.md")
PACKAGE = ROOT / "src" / "rallypoint"


def listed(page: str) -> set[str]:
    """The modules in the first column of the tables of files, such as core/store/data.py.

    The first name in a cell has its folder, if the table's head does not name exactly one. Each
    further name in the cell is in the folder of the first.
    """
    found: set[str] = set()
    table: str | None = None
    for line in page.splitlines():
        if not line.startswith("|"):
            table = None
            continue
        cell = line.split("|")[1]
        if table is None:
            folders = re.findall(r"`([\w/]+)/`", cell)
            table = f"{folders[0]}/" if len(folders) == 1 else ""
            continue
        folder = ""
        for place, name in re.findall(r"`((?:\w+/)*)(\w+\.py)`", cell):
            folder = place or folder
            found.add(f"{table}{folder}{name}")
    return found


def test_each_module_has_a_line() -> None:
    # A package's __init__.py has no line unless it has contents of its own; see "The packages".
    modules = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    found = listed(text_of(PAGE))
    assert sorted(modules - found) == []
    assert sorted(each for each in found if not (PACKAGE / each).exists()) == []


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            "| file in `core/` | x |\n|---|---|\n| `a.py`, `b.py` | `c.py` |\n",
            {"core/a.py", "core/b.py"},
        ),
        (
            "| file in `core/` | x |\n|---|---|\n| `store/a.py`, `b.py` | x |\n| `c.py` | x |\n",
            {"core/store/a.py", "core/store/b.py", "core/c.py"},
        ),
        (
            "| in `cli/` and `bench/` | x |\n|---|---|\n| `cli/a.py`, `b.py` | x |\n",
            {"cli/a.py", "cli/b.py"},
        ),
        ("`core/a.py`\n", set()),
    ],
)
def test_a_name_takes_its_folder_from_the_table_and_the_cell(
    table: str, expected: set[str]
) -> None:
    assert listed(table) == expected
