"""The links of the pages work on GitHub, and lead to the same places in the site."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from tests.docsite.pages import PAGES, ROOT, text_of
from tools.docsite.links import LinkError, adapted, anchor, problem, targets
from tools.docsite.plan import places


def test_every_page_that_is_committed_is_in_the_site() -> None:
    found = {PurePosixPath(f"docs/{path.name}") for path in (ROOT / "docs").glob("*.md")}
    assert found <= set(PAGES)


def test_links_work_on_github() -> None:
    found = [(page, each) for page in PAGES for each in targets(text_of(page))]
    assert len(found) > 50
    assert [problem(ROOT, *each) for each in found if problem(ROOT, *each)] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere_in_the_site(page: PurePosixPath) -> None:
    adapted(ROOT, page, text_of(page), places(ROOT))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "src").mkdir()
    (tmp_path / "README.md").write_text("# One\n\n## What it does, and why\n")
    (tmp_path / "docs" / "a.md").write_text("# A\n")
    (tmp_path / "src" / "x.py").write_text("")
    (tmp_path / "Makefile").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "is_right"),
    [
        ("../README.md", True),
        ("../README.md#what-it-does-and-why", True),
        ("#a", True),
        ("../src/x.py", True),
        ("../READ.md", False),
        ("../README.md#what-it-does", False),
        ("#b", False),
    ],
)
def test_a_link_without_a_target_is_found(root: Path, target: str, is_right: bool) -> None:
    assert (problem(root, PurePosixPath("docs/a.md"), target) == "") == is_right


def test_links_are_adapted_and_code_is_left_alone(root: Path) -> None:
    where = {
        PurePosixPath("README.md"): PurePosixPath("index.md"),
        PurePosixPath("docs/a.md"): PurePosixPath("a.md"),
    }
    page = PurePosixPath("docs/a.md")
    text = (
        "[r](../README.md#one) [x](../src/x.py) [w](https://a/b)\n```text\n[r](../README.md)\n```\n"
    )
    assert adapted(root, page, text, where) == (
        "[r](index.md#one) [x](source/src/x.md) [w](https://a/b)\n```text\n[r](../README.md)\n```\n"
    )
    for wrong in ("../Makefile", "../nothing.md", "../../outside.md"):
        with pytest.raises(LinkError, match=r"docs/a\.md: "):
            adapted(root, page, f"[x]({wrong})", where)


def test_an_anchor_is_made_as_github_makes_it() -> None:
    assert anchor("Options of --rdzv-conf") == "options-of---rdzv-conf"
    assert anchor("What `status` tells, [here](x.md)") == "what-status-tells-here"
