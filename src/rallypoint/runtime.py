"""What a process gets from outside besides input: chance, secrets, names, wall time, threads, and
whether an address refuses connections.

Each process has one Runtime. It belongs to the event loop in which the process runs, and `here` is
the way to it. A real event loop has the system's. A simulated process has an event loop of its own
(simulation/loop.py), with a Runtime that draws everything from a seed; so nothing has to be handed
from constructor to constructor, and nothing can be left out.

Time, timers and tasks are the event loop's own: asyncio's clock, sleeps, timeouts and futures are
simulated with the loop, and need no other seam. Tasks that nobody waits for are started with
`spawn`, which says what an error in one ends. `core/` uses nothing of this: it is given the time
and the random numbers that it needs. Parts that work on sockets and processes themselves are not
simulated, and need no Runtime either.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Hashable, MutableSequence, Sequence
from typing import Any, Final, Protocol, TypeVar

from rallypoint import net, threads
from rallypoint.core.values import Address

T = TypeVar("T")

Failed = Callable[[Exception], None]
"""Called with the exception that ended some work. Must not raise."""


class Chance(Protocol):
    """Random numbers that need not be secret. Python's module `random` offers them."""

    def random(self) -> float:
        """At least 0 and below 1."""

    def uniform(self, a: float, b: float) -> float:
        """Between a and b."""

    def randrange(self, start: int) -> int:
        """At least 0 and below `start`."""

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """`k` different items."""

    def shuffle(self, x: MutableSequence[Any]) -> None:
        """Put a list in random order, in place."""


class Runtime(Hashable, Protocol):
    """See above. All calls are for the process's event loop, and `sleep` for its threads.

    The others may be made in the threads that `in_thread` began, too.
    """

    @property
    def chance(self) -> Chance:
        """Random numbers that need not be secret."""

    @property
    def host_name(self) -> str:
        """This machine's name. Other machines may have the same."""

    @property
    def pid(self) -> int:
        """This process's number. In containers, other processes may have the same."""

    def token_bytes(self, count: int) -> bytes:
        """So many secret random bytes."""

    def monotonic_s(self) -> float:
        """The system's monotonic clock, in seconds. An event loop's own may be coarser."""

    def wall_s(self) -> float:
        """Unix time, in seconds. It is only shown to people, because it may jump."""

    async def refuses(self, address: Address, limit_s: float) -> bool | None:
        """See net.refuses."""

    async def is_own(self, host: str) -> bool:
        """See net.is_this_host."""

    def in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Begin `work` in a thread, because it may block. The future has what it returns or raises.

        Cancelling the future does not end the call. Raises RuntimeError if the system grants no
        thread.
        """

    def sleep(self, seconds: float) -> None:
        """Block. Only for work in a thread."""


class SystemRuntime:
    """The Runtime of a real process."""

    chance: Chance = random

    @property
    def host_name(self) -> str:
        """See Runtime."""
        return socket.gethostname()

    @property
    def pid(self) -> int:
        """See Runtime. A child of fork() has another."""
        return os.getpid()

    def token_bytes(self, count: int) -> bytes:
        """See Runtime."""
        return secrets.token_bytes(count)

    def monotonic_s(self) -> float:
        """See Runtime."""
        return time.monotonic()

    def wall_s(self) -> float:
        """See Runtime."""
        return time.time()

    async def refuses(self, address: Address, limit_s: float) -> bool | None:
        """See Runtime."""
        return await net.refuses(address, limit_s)

    async def is_own(self, host: str) -> bool:
        """See Runtime."""
        return await self.in_thread(lambda: net.is_this_host(host))

    def in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """See Runtime."""
        return threads.call_from_loop(work)

    def sleep(self, seconds: float) -> None:
        """See Runtime."""
        time.sleep(seconds)


SYSTEM: Final = SystemRuntime()


def here() -> Runtime:
    """The Runtime of the running event loop; the system's if none is running."""
    runtime: Runtime = getattr(asyncio._get_running_loop(), "runtime", SYSTEM)
    return runtime


def token_hex(count: int) -> str:
    """So many secret random bytes of this process, as hexadecimal digits."""
    return here().token_bytes(count).hex()


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Begin `work` in a thread of this process: see Runtime.in_thread."""
    return here().in_thread(work)


def now_s() -> float:
    """The monotonic clock of the running event loop, in seconds. Two processes cannot compare it.

    (R9)
    """
    return asyncio.get_running_loop().time()


def spawn(work: Coroutine[Any, Any, None], failed: Failed) -> asyncio.Task[None]:
    """Start a task that nobody waits for. `failed` is called if an exception ends it."""
    task = asyncio.get_running_loop().create_task(work)

    def ended(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            failed(error)

    task.add_done_callback(ended)
    return task
