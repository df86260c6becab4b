"""The marks in the source: comments such as `# R5: ...` at each place that keeps a rule.

A mark is a comment that begins with a rule's number. It belongs to the code on its line, or, if it
has a line of its own, to the next line of code.
"""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCE: Final = ROOT / "src" / "rallypoint"
PROTOCOL: Final = ROOT / "docs" / "protocol.md"

MARKED: Final = (
    "core",
    "client/machine.py",
    "client/node.py",
    "client/open_requests.py",
    "coordinator/admission.py",
    "coordinator/claimed_run.py",
    "coordinator/connections.py",
    "coordinator/driver.py",
    "coordinator/hosted_run.py",
    "coordinator/http_api.py",
    "coordinator/lease_manager.py",
    "coordinator/log_reader.py",
    "coordinator/log_records.py",
    "coordinator/log_replay.py",
    "coordinator/log_writer.py",
    "coordinator/owned_runs.py",
    "coordinator/resigning.py",
    "coordinator/run_ownership.py",
    "coordinator/store_log.py",
    "coordinator/store_service.py",
    "coordinator/takeover.py",
    "launch/machine.py",
    "launch/worker_env.py",
)
"""Where each line that keeps a rule has a mark. These lines are broken on purpose."""


class Mark(msgspec.Struct, frozen=True):
    """`line`: of the code that it is about. `rules`: all that it names, such as `R5`."""

    path: Path
    line: int
    rules: tuple[str, ...]
    text: str


def rules() -> frozenset[str]:
    """The rules of the protocol, from its page."""
    return frozenset(re.findall(r"^\| (R\d+) \|", PROTOCOL.read_text("utf-8"), re.MULTILINE))


def files(part: str = "") -> list[Path]:
    """The files of a part (`core`, `core/ranks.py`), or all that have marks."""
    found: dict[Path, None] = {}
    for each in (part.removeprefix("src/rallypoint/"),) if part else MARKED:
        path = SOURCE / each
        found.update(dict.fromkeys(sorted(path.rglob("*.py")) if path.is_dir() else [path]))
    return list(found)


def marks_in(path: Path) -> list[Mark]:
    """The marks of one file, in order."""
    text = path.read_text("utf-8")
    found: list[Mark] = []
    waiting: list[str] = []
    code_line = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_mark = token.type == tokenize.COMMENT and re.match(r"# R\d+\b", token.string)
        if is_mark and code_line == token.start[0]:
            found.append(_mark(path, code_line, token.string))
        elif is_mark:
            waiting.append(token.string)
        elif token.type not in _NO_CODE:
            code_line = token.start[0]
            found += [_mark(path, code_line, each) for each in waiting]
            waiting.clear()
    return found


_NO_CODE: Final = frozenset(
    (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
)


def _mark(path: Path, line: int, comment: str) -> Mark:
    return Mark(path, line, tuple(re.findall(r"\bR\d+\b", comment)), comment)
