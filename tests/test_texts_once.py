"""A text that users read stands in one place: two copies would differ after the next change."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import rallypoint

SOURCE = Path(rallypoint.__file__).parent
LONG = 40
"""Shorter texts are words, not sentences."""

MAY_STAND_TWICE = {
    # torch's own words, each in the module in which torch has them
    "The read timeout must be a positive integer.",
    "The state object is corrupt. See inner exception for details.",
    # with a different default prefix in each place
    "name one that nothing else uses, such as {}",
}
BESIDE_THE_PRODUCT = {"bench", "checkers", "simulation", "testing"}
"""Packages that describe measurements, or fail in a test."""


def text_of(node: ast.AST) -> str:
    """A literal text, with {} for each value in it; "" for anything else."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(each) or "{}" for each in parts)
    return ""


def texts(path: Path) -> list[tuple[int, str]]:
    """The literal texts of a file with their lines, without its docstrings."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    skipped: set[ast.AST] = set()
    for node in nodes:
        if isinstance(node, ast.Expr):
            skipped.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
    return [
        (node.lineno, text_of(node))
        for node in nodes
        if isinstance(node, ast.Constant | ast.JoinedStr) and node not in skipped
    ]


def test_no_sentence_stands_twice() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        where = path.relative_to(SOURCE)
        if where.parts[0] not in BESIDE_THE_PRODUCT:
            for line, text in texts(path):
                if len(text) >= LONG:
                    found[text].append(f"{where}:{line}")
    twice = {text: places for text, places in found.items() if len(places) > 1}
    assert {text: twice[text] for text in twice.keys() - MAY_STAND_TWICE} == {}
    assert twice.keys() >= MAY_STAND_TWICE, "an exception is not needed any more"
