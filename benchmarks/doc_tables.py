"""Puts a benchmark's tables into a page of docs/, between two marks and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class NoMarksError(Exception):
    """The page does not have the two marks."""


def marks(by: str) -> tuple[str, str]:
    """The marks of `by`, a script's path in the repository, which writes between them."""
    return f"<!-- begin: written by {by} -->", f"<!-- end: written by {by} -->"


def put(text: str, page: str, by: str) -> str:
    """The page with this text between the marks. Raises NoMarksError."""
    begin_mark, end_mark = marks(by)
    before, begin, rest = page.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise NoMarksError(f"the page has no {begin_mark} with {end_mark} after it")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. All columns but the first are right-aligned numbers."""
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
