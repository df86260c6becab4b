"""The threads of simulated processes, for calls that block: those of the file ledger.

Such a call is plain code, which cannot be stopped from outside. So each has a real thread, and all
threads of a world share one baton: exactly one of them runs, or the world itself. A call gives the
baton back at its steps, where time may pass and other processes go on. A call of a process that was
killed stays at its step for ever; one of a frozen process until that goes on. When the world
closes, each open call ends by an exception at its step, and whatever it does then has no effect.
"""

from __future__ import annotations

import asyncio
import random
import threading
from asyncio import events
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")
START_S: Final = 0.0003
"""At most so long takes the start of a thread."""


class Time(Protocol):
    """The world of the threads."""

    seed: int

    def after(self, delay_s: float, callback: Callable[[], None]) -> object:
        """Call it in so many seconds."""


class Owner(Protocol):
    """A process that has threads."""

    is_alive: bool
    on_thaw: list[Callable[[], None]]

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Its event loop."""

    @property
    def is_frozen(self) -> bool:
        """Whether it is stopped now."""

    def soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Call it in its loop."""


class WorldClosedError(BaseException):
    """Ends a call that is open when its world closes. No code of ours catches it."""


class _Worker:
    """A real thread. It does one call after another."""

    def __init__(self, back: threading.Lock) -> None:
        self.process: Owner | None = None
        self.work: Callable[[], Any] | None = None
        self.ended: Callable[[], Any] = _nothing
        self.settle: Callable[[], None] = _nothing
        """Hand the outcome to the process. Called by the world."""
        self.is_over = False
        self._back = back
        self._go = threading.Lock()
        self._go.acquire()
        self._thread = threading.Thread(target=self._run, daemon=True, name="simulated")
        self._thread.start()

    def let_go(self) -> None:
        """Hand it the baton, and wait until it gives that back. Called by the world."""
        self._go.release()
        self._back.acquire()

    def give_back(self) -> None:
        """Give the baton back, and wait for it. Called in this thread."""
        self._back.release()
        self._go.acquire()
        if self.is_over:
            raise WorldClosedError

    def join(self) -> None:
        """Wait for the end of the thread. Called by the world."""
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._go.acquire()
            if self.work is not None and self.process is not None:
                events._set_running_loop(self.process.loop)
                self.ended = _outcome(self.work)
                events._set_running_loop(None)
                self.work = None
            self._back.release()
            if self.is_over:
                return


def _nothing() -> None:
    pass


def _outcome(work: Callable[[], Any]) -> Callable[[], Any]:
    """Do the work; a function that returns or raises what it did."""
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - raised where the future is awaited
        return partial(_raise, error)
    return lambda: result


def _raise(error: BaseException) -> None:
    raise error


class Threads:
    """All threads of one world."""

    def __init__(self, world: Time) -> None:
        self._world = world
        self._random = random.Random(f"{world.seed}/threads")
        self._back = threading.Lock()
        self._back.acquire()
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, None] = {}
        self._current: _Worker | None = None

    def call(self, process: Owner, work: Callable[[], T]) -> asyncio.Future[T]:
        """Begin a call in a thread of the process; a future of its loop."""
        future: asyncio.Future[T] = process.loop.create_future()
        delay_s = START_S * self._random.random()
        self._world.after(delay_s, lambda: self._start(process, work, future))
        return future

    def step(self, delay_s: float = 0.0) -> None:
        """In a call: let so many seconds pass, in which others go on. 0: none, and nobody does."""
        worker = self._here()
        if worker is not None and delay_s > 0.0:
            self._world.after(delay_s, partial(self._go_on, worker))
            worker.give_back()

    def wait(self, waiting: list[Callable[[], None]]) -> None:
        """In a call: wait until the function that this adds to `waiting` is called."""
        worker = self._here()
        if worker is not None:
            waiting.append(lambda: self._go_on_soon(worker))
            worker.give_back()

    def close(self) -> None:
        """End all calls. Nothing that they do then is seen."""
        for worker in (*self._busy, *self._idle):
            worker.is_over = True
            self._current = worker
            worker.let_go()
            self._current = None
            worker.join()
        self._busy.clear()
        self._idle.clear()

    def _here(self) -> _Worker | None:
        """The thread that makes this call; None outside of threads, where nothing can wait."""
        worker = self._current
        if worker is not None and worker.is_over:
            raise WorldClosedError
        return worker

    def _start(self, process: Owner, work: Callable[[], T], future: asyncio.Future[T]) -> None:
        if not process.is_alive:
            return
        worker = self._idle.pop() if self._idle else _Worker(self._back)
        worker.process, worker.work = process, work
        self._busy[worker] = None

        def settle() -> None:
            self._busy.pop(worker)
            ended = worker.ended
            self._idle.append(worker)
            process.soon(_set, future, ended)

        worker.settle = settle
        self._go_on(worker)

    def _go_on_soon(self, worker: _Worker) -> None:
        self._world.after(START_S * self._random.random(), partial(self._go_on, worker))

    def _go_on(self, worker: _Worker) -> None:
        process = worker.process
        assert process is not None
        if not process.is_alive:
            return  # It stays at its step for ever.
        if process.is_frozen:
            process.on_thaw.append(partial(self._go_on_soon, worker))
            return
        before, self._current = self._current, worker
        worker.let_go()
        self._current = before
        if worker.work is None:
            worker.settle()


def _set(future: asyncio.Future[Any], ended: Callable[[], Any]) -> None:
    if future.done():
        return
    try:
        future.set_result(ended())
    except BaseException as error:  # noqa: BLE001 - raised where the future is awaited
        future.set_exception(error)
