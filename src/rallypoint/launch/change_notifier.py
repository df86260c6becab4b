"""Waits in the agent's loop until a condition holds.

This file must not handle runs or workers, or run blocking calls: see rallypoint/threads.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class ChangeNotifier:
    """Wakes waiting tasks when something may have changed. For one event loop.

    No notification is lost: a task checks its condition before it waits, and no other task runs in
    between.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self, *_: object) -> None:
        """Something may have changed. It takes any arguments, so it can be any callback."""
        self._event.set()

    async def next(self) -> None:
        """Wait for the next notification."""
        self._event.clear()
        await self._event.wait()

    async def until(self, is_so: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `is_so()`, at most `timeout_s`, and return it. Its changes must notify."""
        try:
            async with asyncio.timeout(timeout_s):
                while not is_so():
                    await self.next()
        except TimeoutError:
            return is_so()
        return True
