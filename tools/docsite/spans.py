"""Code spans in pages, docstrings and comments: a span that looks like a name must be one.

Names without an underscore and without an inner capital are skipped: they may be plain words.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from tools.docsite.mentions import Mention

_SPAN = re.compile(r"`([^`\n]+)`")
_NAME = re.compile(r"_?[A-Za-z]\w*(?:\.\w+)*(?:\(\))?")
_UNLIKE_A_WORD = re.compile(r"_|[a-z][A-Z]")
_FIELDS = ("name", "id", "attr", "arg", "asname", "module", "rest")


class Names:
    """All names in the code: definitions, uses, and the words of its strings."""

    def __init__(self, sources: Iterable[tuple[PurePosixPath, ast.Module]]) -> None:
        self._words: set[str] = set()
        for path, tree in sources:
            self._words.update(path.with_suffix("").parts)
            prose = {id(each) for each, _ in _docstrings(tree)}
            for node in ast.walk(tree):
                self._add(node, is_prose=id(node) in prose)

    def _add(self, node: ast.AST, *, is_prose: bool) -> None:
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not is_prose:
                self._words.update(re.findall(r"\w+", node.value))
            return
        if isinstance(node, ast.Global | ast.Nonlocal):
            self._words.update(node.names)
        for field in _FIELDS:
            value = getattr(node, field, None)
            if isinstance(value, str):
                self._words.update(value.split("."))

    def has(self, mention: Mention) -> bool:
        """Whether each part of a name exists. A setting may be named without its unit."""
        return all(
            part in self._words
            or f"{part}_s" in self._words
            or re.sub(r"_\d+$", "", part) in self._words
            for part in re.findall(r"\w+", mention.name)
        )


def in_text(path: PurePosixPath, text: str, first_line: int = 1) -> Iterator[Mention]:
    """The code spans of a text that look like names."""
    for number, line in enumerate(text.splitlines(), start=first_line):
        for span in _SPAN.findall(line):
            if _NAME.fullmatch(span) and _UNLIKE_A_WORD.search(span):
                yield Mention(span, path, number)


def in_code(path: PurePosixPath, text: str, tree: ast.Module) -> Iterator[Mention]:
    """The code spans of a file's docstrings, and of comments on their own line."""
    for docstring, value in _docstrings(tree):
        yield from in_text(path, value, docstring.lineno)
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#"):
            yield from in_text(path, line, number)


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.Constant, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text)) as constant):
                yield constant, text
