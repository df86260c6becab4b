"""No page, docstring or comment names a module or a file that does not exist."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest

from tests.docsite.pages import PAGES, ROOT, text_of
from tools.docsite.mentions import Mention, Repository, in_page, in_source

READERS = frozenset({"train.py", "script.py", "two.py", "test_my_ledger.py", "tokens.toml"})
"""Files that a reader has or makes, not this repository."""
GROUPS = frozenset({"rallypoint.ledgers"})
"""Groups of entry points."""
TORCHS = ("torch/", "elastic/")
"""Where the files of torch's begin."""
PAST = frozenset({PurePosixPath("CHANGELOG.md")})
"""Pages about the past."""
PARTS = ("src", "tests", "examples", "benchmarks", "tools", "docs", ".github")


def files() -> list[PurePosixPath]:
    found = [path for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return [PurePosixPath(path.relative_to(ROOT).as_posix()) for path in found]


def missing(mentions: list[Mention], repository: Repository) -> list[str]:
    return [
        str(each)
        for each in mentions
        if not repository.has(each)
        and each.name not in READERS | GROUPS
        and not each.name.startswith(TORCHS)
    ]


def test_pages_name_only_existing_parts() -> None:
    repository = Repository(ROOT, files())
    found = [each for page in PAGES if page not in PAST for each in in_page(page, text_of(page))]
    assert len(found) > 100
    assert missing(found, repository) == []


def test_docstrings_and_comments_name_only_existing_parts() -> None:
    known = files()
    repository = Repository(ROOT, known)
    # This folder's own tests name what is not there.
    sources = [each for each in known if each.suffix == ".py" and "docsite" not in each.parts]
    found = [each for path in sources for each in in_source(path, text_of(path))]
    assert len(found) > 100
    assert missing(found, repository) == []


def test_the_named_tests_exist() -> None:
    """Such as tests/core/test_ranks.py and the name of a test in it, with `::` between them."""
    texts = [text_of(each) for each in PAGES if each not in PAST]
    texts += [path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py")]
    named = {each for text in texts for each in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text)}
    assert len(named) > 10
    for file, name in sorted(named):
        defined = rf"^ *(?:async )?def {name}\(|^class {name}\b"
        assert re.search(defined, (ROOT / file).read_text("utf-8"), re.MULTILINE), (file, name)


@pytest.fixture
def small(tmp_path: Path) -> Repository:
    package = tmp_path / "src" / "rallypoint"
    (package / "core").mkdir(parents=True)
    (package / "__init__.py").write_text("def join(): ...\n")
    (package / "core" / "__init__.py").write_text("")
    (package / "core" / "ranks.py").write_text("class Order: ...\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "protocol.md").write_text("")
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    return Repository(tmp_path, [PurePosixPath(each.as_posix()) for each in names])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see `core/ranks.py` and ranks.py", []),
        ("see docs/protocol.md", []),
        ("see [it](../docs/protocol.md#words)", []),
        ("see `core/rank.py`", ["core/rank.py"]),
        ("see docs/protocols.md", ["docs/protocols.md"]),
        ("`rallypoint.join`, `rallypoint.core.ranks.Order`", []),
        ("`rallypoint.joins`", ["rallypoint.joins"]),
        ("`rallypoint.core.office`", ["rallypoint.core.office"]),
        ("`rallypoint.core.ranks.Orders`", ["rallypoint.core.ranks.Orders"]),
    ],
)
def test_a_missing_name_is_found(small: Repository, text: str, expected: list[str]) -> None:
    page = PurePosixPath("docs/x.md")
    assert [each.name for each in in_page(page, text) if not small.has(each)] == expected


def test_docstrings_and_comments_are_read_but_not_code() -> None:
    text = (
        '"""Of a.py."""\n\n# and b.py\nx = "c.py"\n\n\ndef f():\n    """Two.\n\n    d.py\n    """\n'
    )
    found = sorted((each.name, each.line) for each in in_source(PurePosixPath("x.py"), text))
    assert found == [("a.py", 1), ("b.py", 3), ("d.py", 10)]
