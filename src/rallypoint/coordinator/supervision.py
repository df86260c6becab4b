"""Work with a supervisor: background tasks, and steps of a loop over many runs.

An exception in a task that nobody awaits is lost, and code that waits for the task's result hangs.
An exception in a loop over all runs skips the other runs. So the code that starts such work decides
what an unexpected error ends: one run, or the lease of the whole process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from rallypoint import runtime
from rallypoint.runtime import Failed


class Supervised:
    """The background tasks of one owner. Owned by one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], None] = {}
        """In the order of their start, so that they end in it, too."""

    @property
    def running(self) -> tuple[asyncio.Task[None], ...]:
        """The tasks that have not ended, in the order of their start."""
        return tuple(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None], failed: Failed) -> asyncio.Task[None]:
        """Start the work in the background. `failed` is called if an exception ends it."""
        task = runtime.spawn(work, failed)
        self._tasks[task] = None
        task.add_done_callback(lambda ended: self._tasks.pop(ended, None))
        return task

    async def aclose(self) -> None:
        """Cancel all tasks, and wait until they have ended. Idempotent."""
        await cancelled(self.running)


async def cancelled(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel all tasks, and wait until they have ended. Their exceptions count as read."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    # None has ended: then every version of Python needs as many turns of the loop.
    await asyncio.gather(*running, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.exception()


def guarded(failed: Failed, work: Callable[..., object], *args: object) -> None:
    """Do the work now. `failed` is called if an exception ends it."""
    try:
        work(*args)
    except Exception as error:  # noqa: BLE001 - `failed` decides what it ends
        failed(error)


def error_text(error: BaseException) -> str:
    """An exception in words, for nodes; the log has its traceback."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
