"""SECURITY.md says what each actor may do, what stops it otherwise, and which test shows that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
COLUMNS = ["actor", "may", "must not", "what stops it", "test"]
NOTHING = "nothing yet"
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[dict[str, str]]:
    """The threat model, a row of the table at a time; an empty actor is that of the row before."""
    lines = [each for each in PAGE.splitlines() if each.startswith("|")]
    cells = [[each.strip() for each in line.strip("|").split(" | ")] for line in lines]
    begin = next(number for number, row in enumerate(cells) if row == COLUMNS)
    found: list[dict[str, str]] = []
    for row in cells[begin + 2 :]:
        if len(row) != len(COLUMNS):
            break
        found.append(dict(zip(COLUMNS, row, strict=True)))
        if not found[-1]["actor"]:
            found[-1]["actor"] = found[-2]["actor"]
    return found


def test_each_row_has_a_defence_and_a_test() -> None:
    assert len(rows()) > 20
    for row in rows():
        assert row["must not"], row
        if row["what stops it"].startswith(NOTHING):
            assert row["test"] == "", row
        else:
            assert row["what stops it"], row
            assert _TEST.findall(row["test"]), row


@pytest.mark.parametrize(("file", "name"), sorted(set(_TEST.findall(PAGE))))
def test_every_named_test_exists(file: str, name: str) -> None:
    assert re.search(rf"^( *)(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_nothing_else_in_backticks_looks_like_a_test() -> None:
    """No other test would check a name that is not found above."""
    for each in re.findall(r"`([^`]*tests/[^`]*)`", PAGE):
        assert _TEST.fullmatch(f"`{each}`"), each


def test_all_required_actors_are_in_the_page() -> None:
    actors = {row["actor"] for row in rows()}
    assert actors >= {
        "stranger on the network",
        "web page",
        "other user of the machine",
        "holder of a token in another run",
        "member of the run",
        "old coordinator",
        "writer of the ledger",
        "reader of the traffic",
        "server at an endpoint",
        "worker process",
        "operator",
    }
