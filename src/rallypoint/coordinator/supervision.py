"""Work that somebody answers for: in the background, or in a loop over many runs.

An exception in a task that nobody reads is lost, and what waits for the task waits for ever. One in
a loop over all runs keeps the others from their turn. So whoever starts such work says what an
unexpected error ends: one run, or what belongs to the whole process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Failed = Callable[[Exception], None]
"""Told of the exception that ended the work. Must not raise."""


class Supervised:
    """The background tasks of one owner. Owned by one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> frozenset[asyncio.Task[None]]:
        """The tasks that have not ended."""
        return frozenset(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None], failed: Failed) -> asyncio.Task[None]:
        """Run it in the background. `failed` is called if an exception ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Exception):
                failed(error)

        task.add_done_callback(ended)
        return task

    async def aclose(self) -> None:
        """Cancel them, and wait until they have ended. Idempotent."""
        tasks = self.running
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def guarded(failed: Failed, work: Callable[..., object], *args: object) -> None:
    """Do it now. `failed` is called if an exception ends it."""
    try:
        work(*args)
    except Exception as error:  # noqa: BLE001 - here it is decided what the error ends
        failed(error)


def told(error: BaseException) -> str:
    """An exception in words, for nodes; the log has its traceback."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
