"""Modules and files of the repository that pages, docstrings and comments mention."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_FILE = re.compile(r"(?<![\w/.~$<{-])(?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|yml)\b(?![/(*])")
_MODULE = re.compile(r"(?<![\w./-])rallypoint(?:\.[A-Za-z_]\w*)+(?![\w/=-]|\.[a-z])")


@dataclass(frozen=True)
class Mention:
    """A mentioned file or dotted name, and the place of the mention."""

    name: str
    path: PurePosixPath
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.name}"


def in_page(path: PurePosixPath, text: str) -> Iterator[Mention]:
    """All mentions in a page."""
    for number, line in enumerate(text.splitlines(), start=1):
        yield from _in_line(path, number, line)


def in_source(path: PurePosixPath, text: str) -> Iterator[Mention]:
    """All mentions in the docstrings and comments of a Python file."""
    # Tokenizing is slow, and most files have no mentions.
    candidates = [each for each in text.splitlines() if _may_mention(each)]
    if any("#" in each for each in candidates):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield from _in_line(path, token.start[0], token.string)
    if not candidates:
        return
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(docstring), lineno=line)):
                for number, each in enumerate(docstring.splitlines()):
                    yield from _in_line(path, line + number, each)


def _may_mention(line: str) -> bool:
    is_import = line.lstrip().startswith(("from ", "import "))
    return not is_import and bool(_FILE.search(line) or _MODULE.search(line))


def _in_line(path: PurePosixPath, number: int, line: str) -> Iterator[Mention]:
    for pattern in (_FILE, _MODULE):
        for each in pattern.findall(line):
            # `../` belongs to a link, which `links` checks; `_part.py` is the end of a longer name.
            name = re.sub(r"^(?:\.\./)+", "", each)
            if not name.startswith("_") or name.startswith("__"):
                yield Mention(name, path, number)


class Repository:
    """Everything that a text may mention."""

    def __init__(self, root: Path, files: list[PurePosixPath]) -> None:
        self._root = root
        self._endings = {
            "/".join(path.parts[-length:])
            for path in files
            for length in range(1, len(path.parts) + 1)
        }

    def has(self, mention: Mention) -> bool:
        """Whether a mentioned file or name exists.

        A file may be named by the end of its path: `core/ranks.py`. A dotted name must name a
        module, or a name in the source of a module.
        """
        if mention.name.endswith((".py", ".md", ".toml", ".yml")):
            return mention.name in self._endings
        return self._has_name(mention.name.split("."))

    def _has_name(self, parts: list[str]) -> bool:
        folder = self._root / "src"
        for number, part in enumerate(parts):
            if (folder / part).is_dir():
                folder /= part
                continue
            module = folder / f"{part}.py"
            is_module = module.exists()
            source = (module if is_module else folder / "__init__.py").read_text(encoding="utf-8")
            left = parts[number + 1 :] if is_module else parts[number:]
            return not left or re.search(rf"\b{left[0]}\b", source) is not None
        return True
