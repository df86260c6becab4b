"""Waits in the agent's loop until a condition holds.

Nothing here is about runs or workers, and no call runs here: see rallypoint/threads.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class ChangeNotifier:
    """Wakes the waiters when something may have changed; they look again. For one event loop.

    No notification is lost: a waiter looks before it waits, and nothing else runs in between.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self, *_: object) -> None:
        """Something may have changed. Usable as a callback of any kind."""
        self._event.set()

    async def next(self) -> None:
        """Wait for the next notification."""
        self._event.clear()
        await self._event.wait()

    async def until(self, is_so: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `is_so()`, at most `timeout_s`, and return it. Each change that it depends on
        must notify."""
        try:
            async with asyncio.timeout(timeout_s):
                while not is_so():
                    await self.next()
        except TimeoutError:
            return is_so()
        return True
