"""Text from the source stays what it is in Markdown."""

from __future__ import annotations

import pytest

from tools.docsite.text import escaped, first_sentence, prose


@pytest.mark.parametrize(
    ("docstring", "first"),
    [
        ("One line. And more.\n\nTwo.", "One line."),
        ("How it goes on,\nover two lines. Then.", "How it goes on, over two lines."),
        ("Without an end", "Without an end"),
        ("The file's e.g. name. X", "The file's e.g. name."),
        ("", ""),
    ],
)
def test_the_first_sentence(docstring: str, first: str) -> None:
    assert first_sentence(docstring) == first


def test_every_markup_sign_is_escaped() -> None:
    assert escaped("a_b [x][y] <z> `_a[0]`") == "a\\_b \\[x\\]\\[y\\] \\<z\\> `_a[0]`"
    assert escaped("at http://HOST:PORT, or") == "at `http://HOST:PORT`, or"
    assert escaped("see https://a.org/b") == "see https://a.org/b"


def test_indented_text_stays_code() -> None:
    assert prose("As *so*:\n\n    x = [1]\n") == "As \\*so\\*:\n\n    x = [1]"
