"""The code blocks of pages, and how each is checked.

The language of a block defines its kind. `text` is output or a drawing. In `console` each line that
begins with `$` is a command, and is checked against the program that it calls. Any other block is a
program. The line before it is a comment that GitHub does not show: `run by` with the test that runs
it, or `not run:` with the reason.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

_FENCE = re.compile(r"^(?P<indent>\s*)```(?P<language>\S*)\s*$")
_MARK = re.compile(r"^\s*<!-- (?:run by (?P<test>\S+)|not run: (?P<reason>.+)) -->\s*$")


@dataclass(frozen=True)
class Block:
    """A code block. `line` is its fence; `test` and `reason` come from the comment above."""

    page: PurePosixPath
    line: int
    language: str
    text: str
    test: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: PurePosixPath, text: str) -> Iterator[Block]:
    """The code blocks of a page, in order."""
    lines = text.splitlines()
    begin: int | None = None
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if begin is None:
            begin = number
            continue
        opened = _FENCE.match(lines[begin])
        assert opened is not None
        marked = _MARK.match(lines[begin - 1]) if begin else None
        yield Block(
            page=page,
            line=begin + 1,
            language=opened["language"],
            text="\n".join(lines[begin + 1 : number]) + "\n",
            test=(marked["test"] or "") if marked else "",
            reason=(marked["reason"] or "") if marked else "",
        )
        begin = None


def problem(block: Block) -> str:
    """The fault of a block; "" if it has none."""
    if not block.language:
        return f"{block}: it has no language: `text` if it is output or a drawing"
    if block.language == "console" and not commands(block):
        return f"{block}: no line of it begins with $"
    is_program = block.language not in ("text", "console")
    if is_program and not block.test and not block.reason:
        return f"{block}: a comment above must say which test runs it, or why none does"
    return ""


def commands(block: Block) -> list[list[str]]:
    """The commands in a block: the lines with `$` of a console, our own commands of a script."""
    text = re.sub(r"\$\([^()]*\)", "HERE", block.text.replace("\\\n", " "))
    if block.language == "console":
        lines = re.findall(r"^(?:\w+)?\$ (.+)$", text, re.MULTILINE)
    elif block.language == "sh":
        lines = re.findall(r"\brallypoint (?:run|serve|status|close|token|env)\b[^\n&]*", text)
    else:
        return [json.loads(each) for each in re.findall(r'\["rallypoint".*\]', text)]
    return [shlex.split(each, comments=True) for each in lines]
