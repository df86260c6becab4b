"""Calls that may hang (a file system, DNS, a frozen server), each in a daemon thread of its own.

This is not a thread pool, because Python joins a pool's threads at exit, and asyncio joins those of
its default executor when a loop is closed. So one call that never returns would prevent the end of
the process. A late call is left behind, because it cannot be ended.

This file must not depend on what is called. Threads that live as long as an object (a log writer,
an event loop) are not calls, and belong to that object's file.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
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
    """The outcome of `work`. Raises TimeoutError if it takes longer; the call then goes on."""
    future = call(work)
    try:
        return future.result(max(0.0, seconds))
    except TimeoutError:
        if future.done():
            raise  # raised by the work itself
        raise TimeoutError(f"no answer within {seconds:.3g} s") from None


class OneAtATime:
    """Calls of one thing, each with a deadline, and never two at a time.

    So a hanging resource blocks only one thread, and not one more for each call.
    """

    def __init__(self) -> None:
        self._busy = threading.Lock()

    def within(self, seconds: float, work: Callable[[], T]) -> T:
        """Like `within`. The wait for an earlier call counts."""
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
    import asyncio  # imported here, so that blocking callers do not load it

    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    threading.Thread(target=settle, args=(future, work), name=THREAD_NAME, daemon=True).start()
    return future


def settle(future: asyncio.Future[T], work: Callable[[], T]) -> None:
    """Do `work` in this thread, and set its outcome in a future of a loop in another thread.

    A future that is done, or whose loop is closed, is not changed.
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


class LimitedCalls:
    """Calls with a deadline, at most CALLS_MAX at a time. Owned by one event loop.

    `begin` starts a call in a thread, as `call_from_loop` does.
    """

    def __init__(
        self, begin: Callable[[Callable[[], Any]], asyncio.Future[Any]] = call_from_loop
    ) -> None:
        import asyncio

        self._begin = begin
        self._free = asyncio.Semaphore(CALLS_MAX)

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """What `work` returns or raises. Raises TimeoutError; the call then goes on."""
        import asyncio

        async with asyncio.timeout(timeout_s):
            await self._free.acquire()
            try:
                ended = self._begin(work)
            except BaseException:
                self._free.release()
                raise
            ended.add_done_callback(self._ended)
            # Not awaited directly, because a cancellation would free the place of a call that goes
            # on.
            await asyncio.wait([ended])
            outcome: T = ended.result()
            return outcome

    def _ended(self, ended: asyncio.Future[Any]) -> None:
        self._free.release()
        # otherwise asyncio would report an error for which no caller waits any more
        ended.exception()


class DaemonExecutor(ThreadPoolExecutor):
    """An executor for an event loop, whose calls never prevent the end of the process."""

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call the function in a daemon thread of its own."""
        return call(lambda: function(*args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Does nothing, because it waits for no thread."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop whose `to_thread` and name look-ups never prevent the end of the process."""
    import asyncio

    loop = asyncio.new_event_loop()
    loop.set_default_executor(DaemonExecutor())
    return loop


def run(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in such a loop: a hanging name look-up does not prevent the end."""
    import asyncio

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)
