"""The check of the built site finds what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.docsite.built import problems

RIGHT = '<h1 id="a">A</h1><a href="b.html#b">b</a><script src="x.js"></script>'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text(RIGHT)
    (tmp_path / "b.html").write_text('<p id="b"><a href="https://a.org/">a</a><a href="#b">b</a>')
    (tmp_path / "x.py.html").write_text('<span id="L-1">1</span>')
    (tmp_path / "x.js").write_text("")
    (tmp_path / "x.css").write_text("a { background: url(x.png) }")
    return tmp_path


def test_a_correct_site(site: Path) -> None:
    assert problems(site, [("index.html", "a"), ("b.html", "b")]) == []


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ('<a href="c.html">', "index.html: c.html leads nowhere"),
        ('<a href="b.html#c">', "index.html: b.html#c: there is no such anchor"),
        ('<a href="x.py.html#L-2">', "index.html: x.py.html#L-2: there is no such anchor"),
        ('<a href="#c">', "index.html: #c: there is no such anchor"),
        ('<img src="c.png">', "index.html: c.png leads nowhere"),
        ('<script src="https://c.org/x.js">', "index.html: loads https://c.org/x.js"),
        ('<link rel="stylesheet" href="//c.org/x">', "index.html: loads //c.org/x"),
        ("<p>See [Run][rallypoint.Run].", "index.html: [Run][rallypoint.Run] is not resolved"),
        ('<autoref identifier="x.Run">Run</autoref>', "index.html: x.Run is not resolved"),
    ],
)
def test_each_problem_is_found(site: Path, added: str, expected: str) -> None:
    (site / "index.html").write_text(RIGHT + added)
    assert problems(site) == [expected]


def test_code_may_look_like_a_reference(site: Path) -> None:
    (site / "index.html").write_text(
        f"{RIGHT}<pre>x[0][1] <b>y[a][b]</b></pre><code>z[1][2]</code>"
    )
    assert problems(site) == []


def test_a_style_that_loads_from_elsewhere_is_found(site: Path) -> None:
    (site / "x.css").write_text("@import 'https://c.org/font.css';")
    assert problems(site) == ["x.css: loads from elsewhere"]


def test_a_public_name_without_an_anchor_is_found(site: Path) -> None:
    assert problems(site, [("b.html", "rallypoint.Run")]) == ["b.html: rallypoint.Run is missing"]
