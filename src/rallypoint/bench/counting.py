"""What fleets and the floor share: counting answers, and the event loop of a process of ours."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from typing import Any, Final

DEADLINE_S: Final = 120.0
"""How long anything may take before the measurement has failed."""


class FleetError(Exception):
    """What was asked for did not happen; the text is for a person."""


class Count:
    """Counts things up to a number, and keeps when the first and the last came."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.first_s = 0.0
        self.last_s = 0.0
        self.seen = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not expected:
            self._done.set_result(None)

    def one(self) -> None:
        """One more."""
        self.seen += 1
        if self.seen == 1:
            self.first_s = time.monotonic()
        if self.seen == self.expected:
            self.last_s = time.monotonic()
            if not self._done.done():  # Who waited may have stopped waiting.
                self._done.set_result(None)

    def fail(self, why: str) -> None:
        """It will not happen."""
        if not self._done.done():
            self._done.set_exception(FleetError(why))
            self._done.exception()  # It counts as seen: maybe nobody waits for this one.

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
    """Progress, for a person who waits: stdout is for the driver."""
    print(f"rallypoint: {text}", file=sys.stderr, flush=True)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where it is installed: this process is ours alone."""
    uvloop = _uvloop()
    loop: asyncio.AbstractEventLoop = (uvloop or asyncio).new_event_loop()
    return loop


def loop_name() -> str:
    """Which one that is: the floor depends on it more than Rallypoint does."""
    uvloop = _uvloop()
    return f"uvloop {uvloop.__version__}" if uvloop else "asyncio's own loop"


def _uvloop() -> Any:
    try:
        return importlib.import_module("uvloop")
    except ImportError:
        return None
