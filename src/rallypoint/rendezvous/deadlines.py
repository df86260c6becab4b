"""Deadlines for calls that have none: a name look-up, a store whose host is frozen.

Such a call runs in a thread of its own. One that is late is left behind, as nothing can end it, and
does not keep the process from ending.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises. Raises TimeoutError if that takes longer; it then goes on."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="rallypoint-call").start()
    try:
        return future.result(max(0.0, seconds))
    except TimeoutError:
        if future.done():
            raise  # of the work itself
        raise TimeoutError(f"no answer within {seconds:.3g} s") from None


class OneAtATime:
    """Calls of one thing, each with a deadline, and never two at a time.

    So what is frozen holds one thread, and not one more for each call.
    """

    def __init__(self) -> None:
        self._busy = threading.Lock()

    def within(self, seconds: float, work: Callable[[], T]) -> T:
        """As `within`; waiting for an earlier call counts."""
        ends_s = time.monotonic() + seconds
        if not self._busy.acquire(timeout=max(0.0, seconds)):
            raise TimeoutError(f"an earlier call has not come back within {seconds:.3g} s")

        def run() -> T:
            try:
                return work()
            finally:
                self._busy.release()

        return within(ends_s - time.monotonic(), run)
