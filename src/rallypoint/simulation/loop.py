"""The event loop of one simulated process. The world decides when it has a turn.

It has what asyncio's tasks, futures, locks and timeouts need, and neither sockets nor threads: what
leaves a process goes through its Runtime. Callbacks of one turn run in the order in which they were
added, timers in the order of their times and then of their creation. So one seed gives one order.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, Final, NoReturn, Protocol

from rallypoint.runtime import SYSTEM

RESOLUTION_S: Final = 1e-9
"""A timer that is due within this time is due now: conversions between clocks round."""


class Host(Protocol):
    """The process whose loop it is."""

    def clock_s(self) -> float:
        """The process's monotonic clock, in seconds."""

    def wake(self) -> None:
        """The loop has something to run now."""

    def wake_at(self, clock_s: float) -> None:
        """The loop's first timer is due at this time of the process's clock."""

    def reported(self, context: dict[str, Any]) -> None:
        """Something failed for which nobody waits: see `loop.call_exception_handler`."""


class ProcessLoop(asyncio.AbstractEventLoop):
    """See above. `turn` runs what is due; only the world calls it."""

    def __init__(self, host: Host, name: str = "") -> None:
        self._host = host
        self.name = name
        """Of its process."""
        self.runtime: Any = SYSTEM
        """What `rallypoint.runtime.here` gives to the process."""
        self._ready: deque[events.Handle] = deque()
        self._timers: list[tuple[float, int, events.TimerHandle]] = []
        """(time, serial, timer)."""
        self._serial = 0
        self._cancelled = 0
        self._is_closed = False
        self._names = 0
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._failed: list[asyncio.Task[Any]] = []

    # -- for the world ---------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether a callback waits for the next turn."""
        return bool(self._ready)

    @property
    def next_due_s(self) -> float | None:
        """When the first timer is due on the process's clock; None without one."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)[2]._scheduled = False  # type: ignore[attr-defined]
            self._cancelled -= 1
        return timers[0][0] if timers else None

    @property
    def timers(self) -> int:
        """How many timers are due later."""
        return len(self._timers) - self._cancelled

    def turn(self) -> int:
        """Run the timers that are due and the callbacks that are ready, as one turn of a loop.

        What they add runs in the next turn. Returns how many callbacks ran.
        """
        now_s = self._host.clock_s()
        timers, ready = self._timers, self._ready
        while timers and timers[0][0] <= now_s:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False  # type: ignore[attr-defined]
            if timer._cancelled:
                self._cancelled -= 1
            else:
                ready.append(timer)
        count = len(ready)
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            for _ in range(count):
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
        finally:
            events._set_running_loop(before)
        return count

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While this is open, it is the running loop: for questions to the shipped code."""
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            yield
        finally:
            events._set_running_loop(before)

    # -- what asyncio needs ----------------------------------------------------------------------

    def time(self) -> float:
        """The process's monotonic clock, in seconds."""
        return self._host.clock_s()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> events.Handle:
        """Call it in the next turn."""
        handle = events.Handle(callback, args, self, context)
        self._ready.append(handle)
        if len(self._ready) == 1:
            self._host.wake()
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> events.Handle:
        """As `call_soon`: a simulated process has one thread."""
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> events.TimerHandle:
        """Call it in so many seconds of the process's clock."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> events.TimerHandle:
        """Call it at this time of the process's clock."""
        timer = events.TimerHandle(when, callback, args, self, context)
        self._serial += 1
        timer._scheduled = True  # type: ignore[attr-defined]
        heapq.heappush(self._timers, (when, self._serial, timer))
        if self._timers[0][2] is timer:
            self._host.wake_at(when)
        return timer

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        if handle._scheduled:  # type: ignore[attr-defined]
            handle._scheduled = False  # type: ignore[attr-defined]
            self._cancelled += 1
            if self._cancelled > 64 and self._cancelled > len(self._timers) // 2:
                self._timers = [each for each in self._timers if not each[2]._cancelled]
                heapq.heapify(self._timers)
                self._cancelled = 0

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        """Start a coroutine as a task. Its name has a serial of this loop, not of the program."""
        self._names += 1
        name = name or f"task-{self._names}"
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if task._log_traceback:
            # Kept, so that it does not depend on Python's garbage collector when it is reported.
            self._failed.append(task)

    @property
    def unread(self) -> list[asyncio.Task[Any]]:
        """Tasks that ended with an exception which nobody has read."""
        return [task for task in self._failed if task._log_traceback]

    @property
    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """The tasks that have not ended, in the order of their start."""
        return tuple(self._tasks)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an error for which nobody waits."""
        self._host.reported(context)

    def get_debug(self) -> bool:
        """False: asyncio's debug mode measures real time."""
        return False

    def is_running(self) -> bool:
        """Whether this loop has its turn now."""
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        """Whether the process has ended."""
        return self._is_closed

    def close(self) -> None:
        """Drop all callbacks and timers. What runs is not told."""
        self._is_closed = True
        self._ready.clear()
        self._timers.clear()
        self._cancelled = 0

    def bury(self) -> None:
        """Close the coroutines of all tasks, after `close`: nothing of them is seen outside.

        Python would do so at some other time, without a running loop, and complain of each.
        """
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            while self._tasks:  # What a coroutine does when it is closed may start others.
                task = next(iter(self._tasks))
                del self._tasks[task]
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine: Any = task.get_coro()
                with contextlib.suppress(BaseException):
                    coroutine.close()
            for task in self._failed:
                task._log_traceback = False
            self._failed.clear()
            self._ready.clear()
            self._timers.clear()
        finally:
            events._set_running_loop(before)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> NoReturn:
        """No simulated process has threads: calls that may hang go through its Runtime."""
        raise NotImplementedError(f"a simulated process started a thread for {func!r}")
