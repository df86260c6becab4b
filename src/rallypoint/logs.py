"""Log lines in which text from another machine cannot move the cursor or forge a line.

Names, reasons and failures come from nodes, and some texts from any process that connects. `tidy`
cleans all lines of a logger in one place, and limits the number of lines of one kind
(`line_limits`). This file must not add a handler or set a level; the program does that.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from rallypoint.core.printable import escaped
from rallypoint.line_limits import LIMITS
from rallypoint.line_limits import limit as limit

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
