"""Workers of Python code for the tests of launch/, their lines and their exits.

What must not be here: a test, or an agent (agent_like.py).
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable

from rallypoint.launch.worker_processes import WorkerExit, WorkerSpec
from tests.waiting import DEADLINE_S


async def until(what: Callable[[], bool], within_s: float = DEADLINE_S) -> None:
    """Poll until it is true, and let the running loop go on. Fails the test at the deadline."""
    async with asyncio.timeout(within_s):
        while not what():  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.002)


def spec(code: str, local_rank: int = 0, *arguments: str, rank: int | None = None) -> WorkerSpec:
    """A worker that runs Python code."""
    return WorkerSpec(
        argv=(sys.executable, "-I", "-S", "-c", code, *arguments),
        env=dict(os.environ),
        cwd=None,
        local_rank=local_rank,
        rank=local_rank if rank is None else rank,
    )


class Lines:
    """An output sink that hands out lines as they come."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queues: dict[int, asyncio.Queue[str]] = {}
        self._buffers: dict[int, bytes] = {}

    def attach(self, local_rank: int, rank: int, stdout_fd: int, stderr_fd: int) -> None:
        self._queues[local_rank] = asyncio.Queue()
        for fd in (stdout_fd, stderr_fd):
            os.set_blocking(fd, False)
            self._buffers[fd] = b""
            self._loop.call_soon_threadsafe(self._loop.add_reader, fd, self._read, local_rank, fd)

    def _read(self, local_rank: int, fd: int) -> None:
        data = os.read(fd, 65536)
        if not data:
            self.close(fd)
            return
        *whole, self._buffers[fd] = (self._buffers[fd] + data).split(b"\n")
        for line in whole:
            self._queues[local_rank].put_nowait(line.decode())

    def close(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        os.close(fd)
        del self._buffers[fd]

    def close_all(self) -> None:
        for fd in list(self._buffers):
            self.close(fd)

    async def line(self, local_rank: int = 0) -> str:
        async with asyncio.timeout(DEADLINE_S):
            return await self._queues[local_rank].get()


class Exits:
    """A callback for exits that can be waited for."""

    def __init__(self) -> None:
        self.seen: list[WorkerExit] = []
        self.times: list[float] = []
        self._queue: asyncio.Queue[WorkerExit] = asyncio.Queue()

    def __call__(self, exit: WorkerExit) -> None:
        self.seen.append(exit)
        self.times.append(time.monotonic())
        self._queue.put_nowait(exit)

    async def next(self) -> WorkerExit:
        async with asyncio.timeout(DEADLINE_S):
            return await self._queue.get()
