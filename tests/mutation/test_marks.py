"""Each rule has marks in the code that keeps it, and a mark names a rule that exists."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.mutation.marks import SOURCE, files, marks_in, rules

WITHOUT_CODE_OF_THE_PROTOCOL = ("checkers", "simulation")
"""Checkers and models have the numbers of the rules too, but keep none."""


def test_the_page_of_the_protocol_has_the_rules() -> None:
    assert rules() == {f"R{number}" for number in range(1, 16)}


def test_each_rule_has_marks_where_lines_are_broken_on_purpose() -> None:
    counts = Counter(rule for path in files() for mark in marks_in(path) for rule in mark.rules)
    few = {rule: counts[rule] for rule in rules() if counts[rule] < 5}
    assert few == {}


def test_a_mark_names_a_rule_that_exists_and_says_why() -> None:
    paths = [
        path
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] not in WITHOUT_CODE_OF_THE_PROTOCOL
    ]
    marks = [mark for path in paths for mark in marks_in(path)]
    assert len(marks) > 400
    unknown = [mark for mark in marks if not set(mark.rules) <= rules()]
    assert unknown == []
    silent = [mark for mark in marks if len(mark.text.split()) < 4]
    assert silent == []


def test_every_file_with_marks_exists() -> None:
    assert [path for path in files() if not path.is_file()] == []


def test_a_mark_belongs_to_its_line_or_to_the_next_line_of_code(tmp_path: Path) -> None:
    path = tmp_path / "any.py"
    path.write_text(
        "def f(a):\n"
        "    # R1: a reason.\n"
        "    # More of it.\n"
        "\n"
        "    if a:\n"
        "        return 1  # R2: another. R3: one more.\n"
        "    # Not a mark, though it names R4.\n"
        "    return '# R5: nor is this'\n"
    )
    found = [(mark.line, mark.rules) for mark in marks_in(path)]
    assert found == [(5, ("R1",)), (6, ("R2", "R3"))]
