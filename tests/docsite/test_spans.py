"""A code span that looks like a name of the code is one."""

from __future__ import annotations

import ast
import re
from pathlib import PurePosixPath

import pytest

from tests.docsite.pages import PAGES, ROOT, text_of
from tests.docsite.test_mentions import PAST
from tools.docsite.mentions import Mention
from tools.docsite.spans import Names, in_code, in_text

TORCHS = frozenset({"Std.from_str", "_NodeDesc", "_RendezvousState", "_start_workers", "list_keys"})
"""Names of torch's that the code does not use."""
RULES = ROOT / "deploy" / "prometheus" / "rallypoint-alerts.yaml"
ALERTS = frozenset(re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8")))


def test_every_name_in_a_code_span_is_one() -> None:
    sources = [
        (PurePosixPath(path.relative_to(ROOT).as_posix()), path.read_text(encoding="utf-8"))
        for part in ("src", "tests", "examples", "benchmarks", "tools")
        for path in sorted((ROOT / part).rglob("*.py"))
        if "docsite" not in path.parts or part == "tools"
    ]
    trees = [(path, text, ast.parse(text)) for path, text in sources]
    names = Names((path, tree) for path, _, tree in trees)
    found = [each for page in PAGES if page not in PAST for each in in_text(page, text_of(page))]
    assert len(found) > 100
    for each in trees:
        found += in_code(*each)
    assert [
        str(each) for each in found if each.name not in TORCHS | ALERTS and not names.has(each)
    ] == []


CODE = '''"""Of `no_such`."""

# and `not_there`
class RunHost:
    """A `RunHost`."""

    settle_s = "a key_of_text"
'''


@pytest.mark.parametrize(
    ("name", "is_there"),
    [
        ("RunHost", True),
        ("RunHost.settle_s", True),
        ("settle", True),
        ("settle_s()", True),
        ("key_of_text", True),
        ("meet_x", True),
        ("no_such", False),
        ("RunHost.no_such", False),
        ("RunsHost", False),
    ],
)
def test_a_missing_name_is_found(name: str, is_there: bool) -> None:
    names = Names([(PurePosixPath("src/meet_x.py"), ast.parse(CODE))])
    assert names.has(Mention(name, PurePosixPath("x.md"), 1)) == is_there


def test_docstrings_and_comments_are_read() -> None:
    found = in_code(PurePosixPath("x.py"), CODE, ast.parse(CODE))
    assert sorted((each.name, each.line) for each in found) == [
        ("RunHost", 5),
        ("no_such", 1),
        ("not_there", 3),
    ]


def test_plain_words_and_commands_are_left_alone() -> None:
    text = "`run` `world size` `--no_such` `RALLYPOINT_X=1` `a_b(c)`"
    assert list(in_text(PurePosixPath("x.md"), text)) == []
