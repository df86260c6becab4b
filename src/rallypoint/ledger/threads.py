"""Runs calls that may hang (a file on a shared disk) in threads, each with a deadline.

Not a thread pool: a pool joins its threads when the interpreter ends, and a thread that waits for
a file server which has gone may never end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")
IN_FLIGHT_MAX: Final = 32


class Threads:
    """One thread for each call, at most IN_FLIGHT_MAX at a time. Owned by one event loop."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """What `work` returns or raises. Raises TimeoutError; the thread then goes on by itself."""
        async with asyncio.timeout(timeout_s):
            await self._free.acquire()
            loop = asyncio.get_running_loop()
            future: asyncio.Future[T] = loop.create_future()
            threading.Thread(
                target=self._call, args=(work, loop, future), daemon=True, name="rallypoint-ledger"
            ).start()
            return await future

    def _call(
        self,
        work: Callable[[], T],
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[T],
    ) -> None:
        outcome: Any = None
        error: BaseException | None = None
        try:
            outcome = work()
        except BaseException as raised:  # noqa: BLE001 - raised where it is waited for
            error = raised

        def tell() -> None:
            self._free.release()
            if future.done():
                return
            if error is None:
                future.set_result(outcome)
            else:
                future.set_exception(error)

        try:
            loop.call_soon_threadsafe(tell)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more
