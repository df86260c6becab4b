"""Counts and the event loop, for processes of virtual nodes and of bare sockets."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from typing import Any, Final

DEADLINE_S: Final = 120.0
"""After this many seconds of a wait the measurement has failed."""


class FleetError(Exception):
    """A command of the driver failed. The text is shown to the user."""


class Count:
    """Counts up to a number, and records the times of the first and the last one."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.first_s = 0.0
        self.last_s = 0.0
        self.seen = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not expected:
            self._done.set_result(None)

    def one(self) -> None:
        """Count one more event."""
        self.seen += 1
        if self.seen == 1:
            self.first_s = time.monotonic()
        if self.seen == self.expected:
            self.last_s = time.monotonic()
            if not self._done.done():  # The future may have been cancelled, or have failed.
                self._done.set_result(None)

    def fail(self, why: str) -> None:
        """Let `all` raise FleetError with this text."""
        if not self._done.done():
            self._done.set_exception(FleetError(why))
            # Retrieve the exception, because asyncio would warn if nothing awaits it.
            self._done.exception()

    async def all(self, what: str, within_s: float = DEADLINE_S) -> None:
        """Wait for the last. Raises FleetError."""
        try:
            async with asyncio.timeout(within_s):
                await self._done
        except TimeoutError:
            raise FleetError(
                f"{self.seen} of {self.expected} nodes {what} within {within_s:g} s"
            ) from None


def say(text: str) -> None:
    """Print progress to stderr; stdout is for the driver."""
    print(f"rallypoint: {text}", file=sys.stderr, flush=True)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop of uvloop if that is installed, otherwise asyncio's own."""
    uvloop = _uvloop()
    loop: asyncio.AbstractEventLoop = (uvloop or asyncio).new_event_loop()
    return loop


def loop_name() -> str:
    """The loop's name, shown beside the figures because bare sockets depend on it most."""
    uvloop = _uvloop()
    return f"uvloop {uvloop.__version__}" if uvloop else "asyncio's own loop"


def _uvloop() -> Any:
    try:
        return importlib.import_module("uvloop")
    except ImportError:
        return None
