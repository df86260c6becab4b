"""Waiting in the agent's loop: for something to be so, and never for a call that hangs.

Nothing here knows runs or workers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_T = TypeVar("_T")
_P = ParamSpec("_P")


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
        """Wait until it is so, at most `timeout_s`; whether it is. Whatever changes what it reads
        must notify."""
        try:
            async with asyncio.timeout(timeout_s):
                while not is_so():
                    await self.next()
        except TimeoutError:
            return is_so()
        return True


class DaemonThreads(ThreadPoolExecutor):
    """An executor whose calls hold nothing up, even if they hang for good (a file system, DNS).

    asyncio waits for the threads of its own executor when the loop is closed, and Python for them
    at exit; so one hanging call would keep an agent from ending. Each call has a thread of its own.
    """

    def submit(
        self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Future[_T]:
        """Call the function in a thread that nobody waits for."""
        future: Future[_T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - handed to who waits for the future
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=call, name="rallypoint-call", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing to wait for."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop whose `to_thread` and name look-ups never keep the process from ending."""
    loop = asyncio.new_event_loop()
    loop.set_default_executor(DaemonThreads())
    return loop
