"""Limits log lines of one kind: the first ones are written, the rest are counted.

A kind is a logger and a message before its arguments are put in. For lines about a run ("run %s:
..."), each run has its own kind. The first lines of a kind pass. Further lines within the time are
counted, and the count is logged when the time is over. A peer without a token, a node that asks for
rounds, or a failing disk can cause thousands of lines. They must not fill a disk or hide other
lines.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

AT_ONCE: Final = 30
"""How many lines of one kind (of one run, for lines about runs) pass within WITHIN_S."""
AT_ONCE_OF_ALL_RUNS: Final = 300
"""The same for all runs together."""
WITHIN_S: Final = 10.0
KINDS_MAX: Final = 2_048
"""How many kinds are counted at a time. With more, all runs are one kind."""
_TEXT_MAX: Final = 500
KIND: Final = "rallypoint_kind"
"""The attribute of a record that names its kind, in place of its message."""
_AT_ONCE: Final = "rallypoint_at_once"
_WITHIN_S: Final = "rallypoint_within_s"
_IS_COUNT: Final = "rallypoint_is_count"
_OF_A_RUN: Final = ("run %s", "run %r")
_PLACE: Final = re.compile(r"%(?:\([^)]*\))?[-#0 +]*[0-9]*(?:\.[0-9]+)?[a-zA-Z%]")
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")

_Key = tuple[str, ...]


def limit(at_once: int, within_s: float = WITHIN_S) -> dict[str, float]:
    """The `extra` of a line that anybody can cause: how many of its kind pass in that time."""
    return {_AT_ONCE: at_once, _WITHIN_S: within_s}


class _Kind:
    """One kind, from its first line on until its time is over."""

    __slots__ = ("began_s", "ends_s", "last", "left", "level", "unsaid")

    def __init__(self, at_once: int, within_s: float, now_s: float) -> None:
        self.left = at_once
        self.began_s = now_s
        self.ends_s = now_s + within_s
        self.unsaid = 0
        self.level = logging.NOTSET
        self.last: logging.LogRecord | None = None

    def may_pass(self, record: logging.LogRecord) -> bool:
        """Whether one more line passes; if not, it is counted."""
        if self.left > 0:
            self.left -= 1
            return True
        self.unsaid += 1
        self.level = max(self.level, record.levelno)
        self.last = record
        return False


class LineLimits:
    """Counts the lines of a process. Any thread may call it.

    `now_s` is a clock that never goes back. `later(seconds, work)` does the work after that time;
    it must not keep a process alive.
    """

    def __init__(
        self,
        now_s: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        self._now_s = now_s
        self._later = later or _in_a_thread
        self.reset()

    def reset(self) -> None:
        """Start again: in a child of fork(), the threads are gone and the lock may be held."""
        # reentrant: a signal's handler may log in the middle of this
        self._lock = threading.RLock()
        self._kinds: dict[_Key, _Kind] = {}
        self._first_end_s = math.inf
        self._is_looking = False

    def is_let_through(self, record: logging.LogRecord) -> bool:
        """Whether the line passes: a filter for loggers. Levels below INFO are not counted."""
        if (record.levelno or 0) < logging.INFO or hasattr(record, _IS_COUNT):
            return True
        with self._lock:
            now_s = self._now_s()
            over = self._over(now_s)
            passes = self._may_pass(record, now_s)
            if not passes:
                self._look_later(now_s)
        _tell(over, now_s)
        return passes

    def tell(self, *, is_end: bool = False) -> None:
        """Log the counts of the kinds whose time is over; at the end, of all kinds."""
        with self._lock:
            self._is_looking = False
            now_s = self._now_s()
            over = self._over(math.inf if is_end else now_s)
            if any(kind.unsaid for kind in self._kinds.values()):
                self._look_later(now_s)
        _tell(over, now_s)

    def _may_pass(self, record: logging.LogRecord, now_s: float) -> bool:
        general, own = _keys(record)
        is_new = own not in self._kinds
        if not is_new or len(self._kinds) < KINDS_MAX:
            if not self._kind(own, record, AT_ONCE, now_s).may_pass(record):
                return False
            if is_new and record.levelno >= logging.ERROR:
                return True  # The first error of a kind is always logged.
        of_all = self._kind(general, record, AT_ONCE_OF_ALL_RUNS, now_s)
        return of_all.may_pass(record)

    def _kind(self, key: _Key, record: logging.LogRecord, at_once: int, now_s: float) -> _Kind:
        kind = self._kinds.get(key)
        if kind is None:
            at_once = int(getattr(record, _AT_ONCE, at_once))
            kind = _Kind(at_once, getattr(record, _WITHIN_S, WITHIN_S), now_s)
            self._kinds[key] = kind
            self._first_end_s = min(self._first_end_s, kind.ends_s)
        return kind

    def _over(self, now_s: float) -> list[_Kind]:
        """Forget the kinds whose time is over. Returns those that left lines out."""
        if now_s < self._first_end_s:
            return []
        over = [key for key, kind in self._kinds.items() if kind.ends_s <= now_s]
        kinds = [self._kinds.pop(key) for key in over]
        self._first_end_s = min((each.ends_s for each in self._kinds.values()), default=math.inf)
        return [kind for kind in kinds if kind.unsaid]

    def _look_later(self, now_s: float) -> None:
        if not self._is_looking:
            self._is_looking = True
            self._later(max(0.0, self._first_end_s - now_s), self.tell)


def _keys(record: logging.LogRecord) -> tuple[_Key, _Key]:
    """The kind of all runs together, and the line's own.

    The kind of a message without words ("%s") is its final text without numbers.
    """
    template, arguments = str(record.msg), record.args
    kind = getattr(record, KIND, None)
    general = (record.name, kind or (template if arguments else ""))
    run = ""
    if template.startswith(_OF_A_RUN) and isinstance(arguments, tuple) and arguments:
        run = str(arguments[0])
    if kind or (arguments and _has_words(template)):
        return (*general, "all"), (*general, "own", run)
    return (*general, "all"), (*general, "own", run, _NUMBER.sub("0", _text(record)))


@lru_cache(maxsize=512)
def _has_words(template: str) -> bool:
    return any(each.isalpha() for each in _PLACE.sub("", template.removeprefix("run ")))


def _text(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()[:_TEXT_MAX]
    except (TypeError, ValueError, KeyError, IndexError):  # arguments that do not fit the message
        return str(record.msg)[:_TEXT_MAX]


def _tell(kinds: list[_Kind], now_s: float) -> None:
    for kind in kinds:
        if kind.last is None:
            continue
        logger = logging.getLogger(kind.last.name)
        within_s = min(now_s, kind.ends_s) - kind.began_s
        record = logger.makeRecord(
            logger.name,
            kind.level,
            kind.last.pathname,
            kind.last.lineno,
            "and %s more of this kind in %.0f s, the last one: %s",
            (f"{kind.unsaid:,}", max(1.0, within_s), _text(kind.last)),
            None,
            extra={_IS_COUNT: True, **_fields_of(kind.last)},
        )
        logger.handle(record)


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The fields of `logs` that the record was given."""
    names = ("run", "term", "round", "node")
    return {name: getattr(record, name) for name in names if hasattr(record, name)}


def _in_a_thread(seconds: float, work: Callable[[], None]) -> None:
    """At most one thread, and only while lines are left out. It keeps no process alive."""
    timer = threading.Timer(seconds, work)
    timer.daemon = True
    timer.name = "rallypoint-line-limits"
    # no thread is available: the next line logs the counts, or the end of the process
    with contextlib.suppress(RuntimeError):
        timer.start()


LIMITS: Final = LineLimits()
"""The limits of this process."""
os.register_at_fork(after_in_child=LIMITS.reset)
atexit.register(LIMITS.tell, is_end=True)
