"""Calls that may hang (a file system, DNS, a frozen server), each in a daemon thread of its own.

Not a thread pool: Python joins a pool's threads at exit, and asyncio joins those of its default
executor when a loop is closed. So one call that never returns would keep the process from ending.
A call that is late is left behind, since nothing can end it.

Nothing here knows what is called. Threads that live as long as an object (a log writer, an event
loop of their own) are not calls, and belong to that object's file.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
P = ParamSpec("P")

THREAD_NAME: Final = "rallypoint-call"
CALLS_MAX: Final = 32
"""How many calls of one `LimitedCalls` run at a time."""


# -- callers that block --------------------------------------------------------------------------


def call(work: Callable[[], T]) -> Future[T]:
    """Begin `work` in a daemon thread. A future that is cancelled before the thread runs skips it.

    Raises RuntimeError if the system grants no thread.
    """
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=THREAD_NAME, daemon=True).start()
    return future


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises. Raises TimeoutError if that takes longer; the call goes on."""
    future = call(work)
    try:
        return future.result(max(0.0, seconds))
    except TimeoutError:
        if future.done():
            raise  # by the work itself
        raise TimeoutError(f"no answer within {seconds:.3g} s") from None


class OneAtATime:
    """Calls of one thing, each with a deadline, and never two at a time.

    So a thing that hangs holds one thread, and not one more for each call.
    """

    def __init__(self) -> None:
        self._busy = threading.Lock()

    def within(self, seconds: float, work: Callable[[], T]) -> T:
        """As `within`; waiting for an earlier call counts."""
        ends_s = time.monotonic() + seconds
        if not self._busy.acquire(timeout=max(0.0, seconds)):
            raise TimeoutError(f"an earlier call has not returned within {seconds:.3g} s")

        def run() -> T:
            try:
                return work()
            finally:
                self._busy.release()

        return within(ends_s - time.monotonic(), run)


# -- callers in an event loop --------------------------------------------------------------------


def call_from_loop(work: Callable[[], T]) -> asyncio.Future[T]:
    """Begin `work` in a daemon thread; a future of the running loop.

    Cancelling the future does not end the call. Raises RuntimeError if the system grants no thread.
    """
    import asyncio  # here: callers that block do not load it

    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    threading.Thread(target=settle, args=(future, work), name=THREAD_NAME, daemon=True).start()
    return future


def settle(future: asyncio.Future[T], work: Callable[[], T]) -> None:
    """Do `work` in this thread, and give its outcome to a future of a loop in another thread.

    Nothing happens to a future that is done, or whose loop is closed.
    """
    outcome: Any = None
    error: BaseException | None = None
    try:
        outcome = work()
    except BaseException as raised:  # noqa: BLE001 - raised where the future is awaited
        error = raised

    def tell() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(outcome)
        else:
            future.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        future.get_loop().call_soon_threadsafe(tell)


async def await_within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises. Raises TimeoutError if that takes longer; the call goes on."""
    import asyncio

    async with asyncio.timeout(seconds):
        return await call_from_loop(work)


class LimitedCalls:
    """Calls with a deadline, at most CALLS_MAX at a time. Owned by one event loop."""

    def __init__(self) -> None:
        import asyncio

        self._free = asyncio.Semaphore(CALLS_MAX)

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """What `work` returns or raises. Raises TimeoutError; the call then goes on."""
        import asyncio

        async with asyncio.timeout(timeout_s):
            await self._free.acquire()
            try:
                ended = call_from_loop(work)
            except BaseException:
                self._free.release()
                raise
            ended.add_done_callback(self._ended)
            # Not awaited directly: cancelling it would free the place of a call that goes on.
            await asyncio.wait([ended])
            return ended.result()

    def _ended(self, ended: asyncio.Future[Any]) -> None:
        self._free.release()
        ended.exception()  # or asyncio reports an error for which nobody waits any more


class DaemonExecutor(ThreadPoolExecutor):
    """An executor for an event loop, whose calls never keep the process from ending."""

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call the function in a daemon thread of its own."""
        return call(lambda: function(*args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing: no thread is waited for."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop whose `to_thread` and name look-ups never keep the process from ending."""
    import asyncio

    loop = asyncio.new_event_loop()
    loop.set_default_executor(DaemonExecutor())
    return loop
