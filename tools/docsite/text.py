"""Text for Markdown pages: escaping, first sentences, lists."""

from __future__ import annotations

import re

_CODE_SPAN = re.compile(r"(`+[^`]+`+)")
_FORM_OF_ADDRESS = re.compile(r"\bhttps?://\w+(?::\w+)?(?![\w./])")
"""For example http://HOST:PORT, which a generator would turn into a link."""


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring, or its first paragraph if there is no sentence."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    found = re.match(r"(.+?[.!?])(?= [A-Z`(]|$)", paragraph)
    return found.group(1) if found else paragraph


def prose(docstring: str) -> str:
    """A docstring as Markdown: indented text stays code, and signs of markup are escaped."""
    lines = docstring.strip().splitlines()
    return "\n".join(line if line.startswith("    ") else escaped(line) for line in lines)


def escaped(line: str) -> str:
    """A line with code spans as its only markup."""
    parts = _CODE_SPAN.split(_FORM_OF_ADDRESS.sub(r"`\g<0>`", line) if "`" not in line else line)
    return "".join(
        part if number % 2 else re.sub(r"([\[\]<>*_|\\#])", r"\\\1", part)
        for number, part in enumerate(parts)
    )


def cell(text: str) -> str:
    """Text within a cell of a table. A bar would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """A code span."""
    return f"`{text}`"
