"""The messages in the table of docs/operations.md are messages of the code."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docsite.pages import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SYSTEMS = frozenset({"No space left on device"})
"""Texts of the operating system."""
PROGRAMS = frozenset({"kill", "python", "rallypoint", "serve"})
"""The first words of spans that are commands, not messages."""


def quoted(page: str) -> list[str]:
    """The messages in the table below the heading about messages, and in that about failures."""
    table = page.partition("\n## Messages, and what to do\n")[2]
    cells = re.findall(r"^\| (`.*?`) \| ", table, re.MULTILINE)
    found = [each for cell in cells for each in re.findall(r"`([^`]+)`", cell)]
    failures = page.partition("\n## What happens on each failure\n")[2].partition("\n## ")[0]
    spans = [each for each in re.findall(r"`([^`]+)`", failures) if " " in each]
    return found + [each for each in spans if each.split()[0] not in PROGRAMS]


def fixed(message: str) -> list[str]:
    """The parts of a message that do not vary: without `...`, numbers and quoted names."""
    parts = re.split(r"\.\.\.|\d[\d.]*|: |'\S*'", message)
    return [each.strip(" ,;:'") for each in parts if each.strip(" ,;:'")]


def texts() -> set[str]:
    """Every text in the source, and every constant part of a text with values in it.

    Without docstrings: a text on its own line is no message.
    """
    found: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        alone = {id(each.value) for each in nodes if isinstance(each, ast.Expr)}
        found |= {
            each.value
            for each in nodes
            if isinstance(each, ast.Constant)
            and isinstance(each.value, str)
            and id(each) not in alone
        }
    return found


def test_every_message_of_the_table_is_in_the_code() -> None:
    known = texts()
    messages = quoted(PAGE)
    assert len(messages) > 15
    missing = [
        (message, part)
        for message in messages
        for part in fixed(message)
        if part not in SYSTEMS and not any(part in each for each in known)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("this coordinator lost its lease", ["this coordinator lost its lease"]),
        ("suspended: away for 12.3 s: ...", ["suspended", "away for", "s"]),
        ("log 'stores/...' is gone", ["log", "is gone"]),
    ],
)
def test_the_parts_that_do_not_vary(message: str, parts: list[str]) -> None:
    assert fixed(message) == parts
