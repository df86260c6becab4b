"""The oracles of the fuzzer: what must not happen, with any input."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from typing import Any


class FuzzFailure(AssertionError):
    """An input did what none may do. The text says what."""


class Watch(logging.Handler):
    """Collects undeclared exceptions: in tasks, in callbacks, and in the log.

    `problems`: what was seen. Use it as a context manager: it listens to the whole process's log.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.problems: list[str] = []

    def __enter__(self) -> Watch:
        root = logging.getLogger()
        root.addHandler(self)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *error: object) -> None:
        sys.unraisablehook = self._hook
        logging.getLogger().removeHandler(self)

    def on_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For `loop.set_exception_handler`."""
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if error else ""
        self.problems.append(f"{context.get('message')}\n{trace}")

    def emit(self, record: logging.LogRecord) -> None:
        has_trace = record.exc_info is not None or bool(record.exc_text)
        message = record.getMessage()
        if record.levelno >= logging.ERROR or "Traceback" in message or has_trace:
            trace = record.exc_text or ""
            if record.exc_info and record.exc_info[1] is not None and not trace:
                trace = "".join(traceback.format_exception(record.exc_info[1]))
            self.problems.append(f"{record.levelname} {record.name}: {message}\n{trace}")

    def check(self) -> None:
        """Raises FuzzFailure, with all that was seen, if anything was."""
        if self.problems:
            found, self.problems = self.problems, []
            raise FuzzFailure("\n".join(found[:5])[:20_000])

    def _unraisable(self, found: Any) -> None:
        trace = "".join(traceback.format_exception(found.exc_value))
        self.problems.append(f"{found.err_msg or 'in a finalizer'}: {found.object!r}\n{trace}")


def must(holds: bool, what: str) -> None:
    """Raises FuzzFailure unless it holds."""
    if not holds:
        raise FuzzFailure(what)
