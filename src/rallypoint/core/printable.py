"""Text from other machines, made harmless for a terminal and a log. Quick to import."""

from __future__ import annotations


def escaped(text: str, *, lines: bool = False) -> str:
    """The text with each control character written as a Python escape.

    `lines` True keeps line breaks. Otherwise the result is always one line.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or (lines and each == "\n") else ascii(each)[1:-1]
        for each in text
    )
