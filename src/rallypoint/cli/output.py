"""The output of the commands: data on stdout, messages on stderr, errors that end with a hint.

All output is readable without colour; rich uses no colour if NO_COLOR is set or the output is no
terminal. Names and reasons come from other machines, so they are cleaned: they cannot move the
cursor or set a colour.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rallypoint.cli import descriptors
from rallypoint.core.printable import escaped
from rallypoint.errors import RallypointError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_UNFOLDED_WIDTH: Final = 10_000
"""The width without a terminal, so that a row is one line: a program that reads it needs no
folding.
"""


_log_as_json = _is_quiet = False


def set_log(*, is_json: bool = False, is_quiet: bool = False) -> None:
    """Choose the form of messages on stderr from now on.

    `is_json`: lines of JSON, see docs/logs.md. `is_quiet`: only warnings and errors.
    """
    global _log_as_json, _is_quiet
    _log_as_json, _is_quiet = is_json, is_quiet


def _say_json(level: str, message: str, hint: str = "") -> None:
    from rallypoint import logs

    more = {"hint": clean(hint, lines=True)} if hint else {}
    _say(logs.as_json(message, level=level, at_s=time.time(), logger="rallypoint.cli", **more))


def print_error(message: str, hint: str = "") -> None:
    """ "error: ..." on stderr, and last, if there is one, the line "hint: ..."."""
    if _log_as_json:
        _say_json("error", message, hint)
        return
    _say(f"error: {clean(message, lines=True)}")
    if hint:
        _say(f"hint: {clean(hint, lines=True)}")


def _say(line: str) -> None:
    """A line on stderr. An error of the write is ignored: it could not be shown."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        descriptors.abandon(sys.stderr.fileno())


def print_failure(error: RallypointError) -> None:
    """Print an expected error for people."""
    print_error(error.message, error.hint)


def note(message: str) -> None:
    """Print a message for people, beside the data."""
    if _is_quiet:
        return
    if _log_as_json:
        _say_json("info", message)
    else:
        _say(f"rallypoint: {clean(message)}")


def warn(message: str) -> None:
    """Print a warning of a possible mistake."""
    if _log_as_json:
        _say_json("warning", message)
    else:
        _say(f"rallypoint: {clean(f'warning: {message}')}")


def tell_result(text: str) -> None:
    """Print what a command has done, on stdout.

    If that fails, print it on stderr, so that the exit code still shows what was done.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        descriptors.abandon(sys.stdout.fileno())
        note(f"{text} (stdout cannot be written: {error.strerror or error})")


def print_json(body: Any) -> None:
    """Print one JSON value for programs: indented on a terminal, otherwise on one line."""
    print(as_json(body, indent=2 if sys.stdout.isatty() else None), flush=True)


def as_json(body: Any, indent: int | None = None) -> str:
    """The value in JSON. Characters that a terminal may obey are escaped, as names may have them.

    JSON itself escapes only those below 0x20.
    """
    text = json.dumps(body, indent=indent, ensure_ascii=False, allow_nan=False)
    if text.replace("\n", "").isprintable():
        return text
    # Outside of strings JSON has none of them, but line breaks.
    return "".join(
        each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text
    )


def moment_of(at: object) -> datetime | None:
    """A time in seconds since 1970, in the time zone of the terminal; None if it is none."""
    if not isinstance(at, int | float) or at <= 0:
        return None
    try:
        return datetime.fromtimestamp(at, UTC).astimezone()
    except (OverflowError, ValueError, OSError):  # It is millions of years away.
        return None


def clean(text: str, *, lines: bool = False) -> str:
    """The text without control characters for a terminal. `lines` keeps line breaks."""
    return escaped(text, lines=lines)


def cell(text: object, style: str = "") -> Text:
    """Text for a cell of a table, never read as markup."""
    from rich.text import Text

    return Text(clean(str(text)), style=style)


def table(headings: Sequence[str], rows: Iterable[Sequence[Text]]) -> RenderableType:
    """Aligned columns under their headings, without lines."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def console() -> Console:
    """The console for data: stdout, folded only at the width of a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _UNFOLDED_WIDTH
    return Console(file=sys.stdout, highlight=False, width=width)


def show(*parts: RenderableType) -> None:
    """Print each part on stdout, without blanks at the ends of lines."""
    out = console()
    with out.capture() as capture:
        for part in parts:
            out.print(part)
    lines = capture.get().splitlines()
    print("\n".join(line.rstrip() for line in lines), flush=True)
