"""What the shipped code logs in a simulated process, given to the scene instead of a stream.

An error with a traceback is a fault of the shipped code, though a supervisor has caught it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rallypoint.simulation.loop import ProcessLoop

_LOGGER = logging.getLogger("rallypoint")


class _Listener(logging.Handler):
    def __init__(self, told: Callable[[str, str], None], failed: Callable[[str], None]) -> None:
        super().__init__()
        self._told = told
        self._failed = failed

    def emit(self, record: logging.LogRecord) -> None:
        loop = asyncio._get_running_loop()
        if not isinstance(loop, ProcessLoop):
            return
        who, text = loop.name, record.getMessage()
        self._told(who, text)
        if record.exc_info is not None and record.levelno >= logging.ERROR:
            error = record.exc_info[1]
            self._failed(f"{who}: {text}: {type(error).__name__}: {error}")


@contextmanager
def listening(
    told: Callable[[str, str], None], failed: Callable[[str], None], level: int
) -> Iterator[None]:
    """While this is open, log lines of at least this level go to `told`, as (process, text).

    `failed` is called for each error with a traceback. Nothing is printed.
    """
    handler = _Listener(told, failed)
    before = _LOGGER.level, _LOGGER.propagate, _LOGGER.disabled
    disabled = logging.root.manager.disable
    filters = {logger: logger.filters for logger in _loggers()}
    for logger in filters:
        # They count lines by real time, and make text of errors.
        logger.filters = []
    logging.disable(logging.NOTSET)  # Whoever wants no lines must not hide an error.
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(level)
    _LOGGER.propagate = _LOGGER.disabled = False
    try:
        yield
    finally:
        logging.disable(disabled)
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(before[0])
        _LOGGER.propagate, _LOGGER.disabled = before[1:]
        for logger, own in filters.items():
            logger.filters = own


def _loggers() -> list[logging.Logger]:
    """All loggers of the shipped code that exist."""
    known = logging.root.manager.loggerDict.items()
    loggers = [each for name, each in known if name.partition(".")[0] == _LOGGER.name]
    return [each for each in loggers if isinstance(each, logging.Logger)]
