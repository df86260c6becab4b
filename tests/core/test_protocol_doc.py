"""docs/protocol.md agrees with the code: its table, its settings and its numbered rules."""

import re
from pathlib import Path

import msgspec

from rallypoint.core.transitions import as_markdown
from rallypoint.core.values import RunSettings

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def between(name: str) -> str:
    """The text between the markers of this name."""
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)\n?<!-- {name}:end -->", DOC, re.DOTALL)
    assert found, f"docs/protocol.md has no markers for {name}"
    return found.group(1)


def test_the_table_in_the_page_is_the_one_in_the_code() -> None:
    told = "write the output of `python -m rallypoint.core.transitions` between the markers"
    assert between("transitions") == as_markdown(), told


def test_the_settings_in_the_page_are_those_in_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", between("settings"), re.MULTILINE)
    assert rows == [
        (field.name, _shown(field.default)) for field in msgspec.structs.fields(RunSettings)
    ]


def _shown(default: object) -> str:
    if default is None or default == ():
        return "–"
    return f"{default:g}" if isinstance(default, float) else f"{default}"


def test_every_rule_quoted_in_the_code_is_in_the_page() -> None:
    rules = set(re.findall(r"^\| (R\d+) \|", DOC, re.MULTILINE))
    assert rules == {f"R{number}" for number in range(1, 16)}
