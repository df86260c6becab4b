"""Log records: clean text, the fields of docs/logs.md, and their form as text or JSON.

Names, reasons and failures come from nodes, and some texts from any process that connects. `tidy`
cleans all lines of a logger in one place, so that text from another machine cannot move the cursor
or forge a line. It limits the number of lines of one kind (`line_limits`), and adds the fields
`run`, `term`, `round` and `node` to each record. This file must not add a handler or set a level;
the program does that.
"""

from __future__ import annotations

import contextvars
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from rallypoint.core.printable import escaped
from rallypoint.line_limits import KIND, LIMITS
from rallypoint.line_limits import limit as limit

FIELDS: Final = ("run", "term", "round", "node")
"""The attributes of each record of this package; None where the value is not known."""
_OF_A_RUN: Final = ("run %s", "run %r")
_NUMBERS: Final = (bool, int, float, type(None))
_PLAIN: Final = logging.Formatter()


def tidy(name: str, *, lines: bool = False) -> logging.Logger:
    """The logger of that name, whose records are cleaned and limited from now on. Idempotent.

    `lines`: its messages may have several lines, all written by this package.
    """
    logger = logging.getLogger(name)
    if not any(isinstance(each, _Cleaning) for each in logger.filters):
        logger.addFilter(LIMITS.is_let_through)
        logger.addFilter(_Cleaning(lines))
    return logger


class _Cleaning(logging.Filter):
    def __init__(self, lines: bool) -> None:
        super().__init__()
        self._lines = lines

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args
        if isinstance(arguments, tuple):
            record.args = tuple(self._cleaned(each) for each in arguments)
        elif arguments:
            record.args = {name: self._cleaned(each) for name, each in arguments.items()}
        if isinstance(record.msg, str) and not record.args:
            record.msg = escaped(record.msg, lines=self._lines)
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            record.exc_text = _indented(_PLAIN.formatException(record.exc_info))
        _locate(record)
        return True

    def _cleaned(self, argument: Any) -> Any:
        if isinstance(argument, _NUMBERS):
            return argument
        if isinstance(argument, str):
            return escaped(argument, lines=self._lines)
        return _Cleaned(argument, self._lines)


class _Cleaned:
    """An object in a record, which is cleaned when it becomes text."""

    def __init__(self, value: object, lines: bool) -> None:
        self._value = value
        self._lines = lines

    def __str__(self) -> str:
        return self._clean(_one_line(self._value))

    def __repr__(self) -> str:
        return self._clean(repr(self._value))

    def _clean(self, text: str) -> str:
        return escaped(text, lines=self._lines)


def _one_line(value: object) -> str:
    """The text of an object; the hint of an error of this package follows on the same line."""
    message, hint = getattr(value, "message", None), getattr(value, "hint", None)
    if isinstance(value, Exception) and isinstance(message, str) and isinstance(hint, str):
        return f"{message} (hint: {hint})" if hint else message
    return str(value)


class CleanFormatter(logging.Formatter):
    """Formats the records of any logger, so that each is one line, and a traceback is indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))


def _indented(trace: str) -> str:
    """The trace, indented, so that no line of an error's message can look like a log line."""
    lines = escaped(trace, lines=True).split("\n")
    return "\n".join(f"  {line}" for line in lines)


# -- the fields of a record ------------------------------------------------------------------------


class Place:
    """Where the records of one node come from. `stamp`: its present term and round; 0 is none."""

    def __init__(self, run: str, node: str, stamp: Callable[[], tuple[int, int]]) -> None:
        self.run = run
        self.node = node
        self._stamp = stamp

    def fields(self) -> dict[str, Any]:
        """The fields of a record that is made now."""
        term, number = self._stamp()
        return fields(self.run, term, number, self.node)


def fields(
    run: str | None = None,
    term: int | None = None,
    round: int | None = None,
    node: str | None = None,
) -> dict[str, Any]:
    """The fields of a record, for `extra`. A term or round of 0 is none."""
    return {"run": run, "term": term or None, "round": round or None, "node": node}


def event(kind: str) -> dict[str, Any]:
    """The `extra` of a line that was made from an event of a run. Lines of one kind are alike."""
    return {"event": kind, KIND: kind}


_place: contextvars.ContextVar[Place | None] = contextvars.ContextVar("place", default=None)


def enter(place: Place) -> None:
    """Records of this task and of those that it starts come from this place from now on."""
    _place.set(place)


def locate(record: logging.LogRecord, place: Place | None) -> None:
    """Add the fields to a record. Those that it has stay."""
    known = fields() if place is None else place.fields()
    run = getattr(record, "run", None)
    if run is None and str(record.msg).startswith(_OF_A_RUN) and isinstance(record.args, tuple):
        run = str(record.args[0]) if record.args else None
    if run is not None and run != known["run"]:
        known = fields(run, node=known["node"])
    for name, value in known.items():
        if getattr(record, name, None) is None:
            setattr(record, name, value)


def _locate(record: logging.LogRecord) -> None:
    locate(record, _place.get())


# -- forms -----------------------------------------------------------------------------------------


class TextFormatter(CleanFormatter):
    """One line a record: time, level, the known fields, the message. A traceback is indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(place)s%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        known = [(name, getattr(record, name, None)) for name in FIELDS]
        # The run is not written twice.
        shown = [
            f"{name}={value}"
            for name, value in known
            if value is not None and not (name == "run" and str(record.msg).startswith(_OF_A_RUN))
        ]
        record.place = f"[{' '.join(shown)}] " if shown else ""
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object in one line for each record: see docs/logs.md."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, in ASCII, without its end."""
        return as_json(
            record.getMessage(),
            level=record.levelname.lower(),
            at_s=record.created,
            logger=record.name,
            exception=_exception(record),
            event=getattr(record, "event", None),
            **{name: getattr(record, name, None) for name in FIELDS},
        )


def as_json(message: str, *, level: str, at_s: float, logger: str, **more: Any) -> str:
    """A line of the log. `more`: other fields of docs/logs.md; those that are left out are null."""
    time = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
    body = {
        "time": time.replace("+00:00", "Z"),
        "level": level,
        **dict.fromkeys(FIELDS),
        "message": escaped(message, lines=True),
        "hint": None,
        "event": None,
        "logger": logger,
        "exception": None,
    }
    return json.dumps(body | more)


def _exception(record: logging.LogRecord) -> dict[str, str] | None:
    if not record.exc_info or record.exc_info[0] is None:
        return None
    kind, error, _ = record.exc_info
    return {
        "type": kind.__name__,
        "message": escaped(str(error), lines=True),
        "traceback": escaped(_PLAIN.formatException(record.exc_info), lines=True),
    }
