"""The source index has every file and name, and its links follow the real imports."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest

pytest.importorskip("griffe", reason="griffelib is not installed")

from tests.docsite.pages import ROOT
from tools.docsite import listings, sources
from tools.docsite.model import SourceFile
from tools.docsite.reading import module_name, python_files, read, read_all
from tools.docsite.relations import related_files

FILES = {
    "src/pack/__init__.py": '"""The package."""\nfrom pack.ranks import order as order\n',
    "src/pack/ranks.py": '''"""The ranks of members. And more.

    ranks.order()

That is all.
"""

from __future__ import annotations

import re

SPEED_MAX = 3
"""How fast."""


class Order(dict):
    """An order | of *names*."""

    size: int

    def put(self, name: str, *, first: bool = False) -> None:
        """Put a name in."""

    @property
    def last(self) -> str:
        return ""


def order(names, *others, **options):
    """Order names. Twice."""
    from . import lazy

    return lazy
''',
    "src/pack/lazy.py": "X = 1\n",
    "tests/test_ranks.py": "from pack import ranks\n\n\ndef test_an_order():\n    pass\n",
    "examples/one.py": '"""One."""\nimport two\n',
    "examples/two.py": '"""Two."""\n',
}
RANKS = PurePosixPath("src/pack/ranks.py")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_every_python_file_has_a_page_and_a_listing_and_is_in_the_index() -> None:
    """Only the paths of this repository: to read all files takes long, and shows no more."""
    paths = python_files(ROOT)
    assert len(paths) > 400
    assert len({sources.page_of(each) for each in paths}) == len(paths)
    assert len({sources.listing_of(each) for each in paths}) == len(paths)


def test_what_a_file_defines_is_found(root: Path) -> None:
    found = read(root, RANKS)
    assert (found.module, found.purpose.splitlines()[0]) == (
        "pack.ranks",
        "The ranks of members. And more.",
    )
    assert [(each.name, each.kind, each.signature, each.purpose) for each in found.definitions] == [
        ("SPEED_MAX", "constant", "SPEED_MAX", "How fast."),
        ("Order", "class", "Order", "An order | of *names*."),
        ("Order.put", "method", "put(name, *, first)", "Put a name in."),
        ("Order.last", "method", "last", ""),
        ("order", "function", "order(names, *others, **options)", "Order names."),
    ]
    lines = found.text.splitlines()
    for each in found.definitions:
        assert each.name.rpartition(".")[2] in "".join(lines[each.line - 1 : each.line + 1])


def test_imports_are_found_at_every_level(root: Path) -> None:
    found = read(root, RANKS).imports
    assert [(each.name, each.is_lazy) for each in found] == [
        ("__future__.annotations", False),
        ("re", False),
        ("pack.lazy", True),
    ]
    assert module_name(PurePosixPath("src/pack/__init__.py")) == "pack"


def test_related_files_follow_imports_both_ways(root: Path) -> None:
    found = related_files(read_all(root))
    ranks = found[RANKS]
    assert ranks.imports == [PurePosixPath("src/pack/lazy.py")]
    assert ranks.imported_by == [PurePosixPath("src/pack/__init__.py")]
    assert ranks.tested_by == [PurePosixPath("tests/test_ranks.py")]
    # A script finds what is in its own folder.
    assert found[PurePosixPath("examples/two.py")].imported_by == [PurePosixPath("examples/one.py")]


def test_the_page_of_a_file(root: Path) -> None:
    files = read_all(root)
    pages = dict(sources.pages(files))
    page = pages[sources.page_of(RANKS)]
    assert "- [`Order`](ranks.py.html#L-16): An order \\| of \\*names\\*." in page
    assert "    - [`put(name, *, first)`](ranks.py.html#L-21): Put a name in." in page
    assert "- `pack.lazy`: [line 31](ranks.py.html#L-31) when called" in page
    assert "- [`tests/test_ranks.py`](../../tests/test_ranks.md)" in page
    assert "    ranks.order()" in page


def test_the_index_and_the_keywords_have_everything(root: Path) -> None:
    files = read_all(root)
    pages = dict(sources.pages(files))
    for name in FILES:
        assert (
            f"({sources.relative(sources.page_of(PurePosixPath(name)), sources.INDEX)})"
            in (pages[sources.INDEX])
        )
    keywords = "".join(text for path, text in pages.items() if sources.KEYWORDS in path.parents)
    for file in files:
        for each in file.definitions:
            assert f"[`{each.name}`]" in keywords
    # A test is filed under what it tests.
    assert "test_an_order" in pages[sources.KEYWORDS / "a.md"]


def test_every_link_of_the_index_has_its_page_or_line(root: Path) -> None:
    files = read_all(root)
    pages = dict(sources.pages(files))
    listed: dict[PurePosixPath, str] = {}
    for each in files:
        place = sources.listing_of(each.path)
        listed[place] = listings.listing(each, place)
    for page, text in pages.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path, _, fragment = target.partition("#")
            place = PurePosixPath(Path("/", page.parent, path).resolve().relative_to("/"))
            assert place in pages or place in listed, (page, target)
            assert not fragment or f'id="{fragment}"' in listed[place], (page, target)


def test_a_listing_has_a_line_for_each_of_the_file() -> None:
    text = '"""a\n\nb"""\n\nx = "<&>"\n'
    file = SourceFile(PurePosixPath("src/x.py"), "x", "", text, (), ())
    listing = listings.listing(file, sources.listing_of(file.path))
    assert re.findall(r'id="L-(\d+)"', listing) == ["1", "2", "3", "4", "5"]
    assert "&lt;&amp;&gt;" in listing
