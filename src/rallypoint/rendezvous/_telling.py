"""The log lines of a handler's node: those that `rallypoint run` prints.

A `Teller` logs why the node waits, that a round has begun, why it ended, which nodes were lost, and
how the run ended. The sentences are from core/reasons.py. `show_on_stderr` makes them visible under
torchrun, whose launcher does not configure logging.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, TextIO

from rallypoint import errors
from rallypoint.client.node import Node, Round
from rallypoint.client.waiting import Waits, Why, on_standby, while_waiting
from rallypoint.core import reasons
from rallypoint.core.printable import escaped
from rallypoint.core.telling import Lines
from rallypoint.core.values import Change, ChangeKind, CloseRecord

_PACKAGE: Final = "rallypoint"
_SHOWN: Final = ("rallypoint.rendezvous", "rallypoint.client")
"""The loggers whose INFO lines are shown: the handlers', and the node's."""
_log = logging.getLogger("rallypoint.rendezvous")

LINES_MAX: Final = 1_000
"""How many lines may wait while stderr accepts no write."""
FLUSH_S: Final = 1.0


class Teller:
    """Logs the events of one node. For the node's event loop."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = _to_log if say is None else say
        self._name = ""
        self._run_id = ""
        self._told: Change | None = None
        self._is_over = False
        self._lines = Lines()

    def listen(self, node: Node) -> None:
        """Log the events of this node from now on."""
        self._name, self._run_id = node.info.name, node.settings.run_id
        node.on_ended = self.round_ended
        node.on_closed = self.run_ended
        node.on_gone = self.gone
        node.on_standby = lambda: self._waits(on_standby(node.nodes_max))

    def round_began(self, found: Round) -> None:
        """A round with this node has begun."""
        self._lines.forget()
        self._tell(reasons.describe_round(found.head, None, found.seat.node_rank))

    def round_ended(self, change: Change) -> None:
        """The round has ended, or the cause is known now."""
        text = reasons.describe_end_of_round(change, self._told)
        if text and change.kind is not ChangeKind.CLOSED:  # `run_ended` logs that
            self._tell(text)
        self._told = change

    def run_ended(self, close: CloseRecord) -> None:
        """The run is over."""
        if not self._is_over:
            self._is_over = True
            self._tell(reasons.describe_end_of_run(self._run_id, close))

    def gone(self, error: errors.CoordinatorError) -> None:
        """The coordinator refused this node, or is lost for good."""
        if isinstance(error, errors.RunClosedError) and error.close is not None:
            self.run_ended(error.close)
        elif not self._is_over:
            self._is_over = True
            self._tell(f"error: {error.message}")

    def leaves(self) -> None:
        """The node leaves, so the end of its connection is not logged."""
        self._is_over = True

    def while_waiting(self, node: Waits) -> AbstractAsyncContextManager[None]:
        """In this block, log why the node waits."""
        return while_waiting(node, self._waits)

    def _waits(self, why: Why) -> None:
        if self._lines.is_due(why.reason, asyncio.get_running_loop().time()):
            self._tell(why.text)

    def _tell(self, text: str) -> None:
        self._say(escaped(f"[{self._name}] {text}", lines=True))


def _to_log(text: str) -> None:
    _log.info("%s", text)


# -- on stderr ---------------------------------------------------------------------------------


def show_on_stderr() -> None:
    """Show this package's lines, from INFO on, on stderr if the program has no log handler.

    The root logger is not changed. A handler of the program for this package's loggers gets the
    lines instead, and a level that the program has set for them stays.
    """
    package = logging.getLogger(_PACKAGE)
    if not any(isinstance(handler, _StderrHandler) for handler in package.handlers):
        package.addHandler(_StderrHandler())
    for name in _SHOWN:
        logger = logging.getLogger(name)
        if logger.level == package.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


class _StderrHandler(logging.Handler):
    """Writes to sys.stderr, unless another handler gets the record as well.

    It writes in its own thread, because a hanging console or log collector must not delay the
    node's heartbeats. If LINES_MAX lines wait, further ones are dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._started_by = 0

    def filter(self, record: logging.LogRecord) -> bool:
        return not self._is_shown_elsewhere(record.name) and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not text.startswith("["):
            level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            text = f"[{_PACKAGE}] {level}{escaped(self.format(record).expandtabs(), lines=True)}"
        if self._started_by != os.getpid():  # the first line, or the first in a child of fork()
            self._started_by = os.getpid()
            self._lines = queue.SimpleQueue()
            threading.Thread(
                target=_write_all, args=(self._lines,), name="rallypoint-lines", daemon=True
            ).start()
        if self._lines.qsize() < LINES_MAX:
            self._lines.put(text + "\n")

    def flush(self) -> None:
        """Wait until all lines are written, for at most FLUSH_S. `logging` calls it at exit."""
        if self._started_by == os.getpid():
            is_written = threading.Event()
            self._lines.put(is_written)
            is_written.wait(FLUSH_S)

    def _is_shown_elsewhere(self, name: str) -> bool:
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


def _write_all(lines: queue.SimpleQueue[str | threading.Event]) -> None:
    while True:
        line = lines.get()
        if isinstance(line, threading.Event):
            line.set()
            continue
        stream: TextIO | None = sys.stderr
        with contextlib.suppress(OSError, ValueError):  # stderr has no reader any more
            if stream is not None:
                stream.write(line)
                stream.flush()
