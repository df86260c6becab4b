"""What the tests of launch/ share: programs to start, waiting without sleeping, who is alive."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from rallypoint.launch import guard_process
from rallypoint.launch.worker_processes import WorkerExit, WorkerSpec

SRC = Path(__file__).parents[2] / "src"
DEADLINE_S = 60.0  # for what should take milliseconds, on a machine that does much else


def alive(pid: int) -> bool:
    process = guard_process.read_process(pid)
    return process is not None and process.alive


def wait_until(what: Callable[[], bool], within_s: float = DEADLINE_S) -> float:
    """Polls until it is true; the seconds that it took. Fails the test at the deadline."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < within_s, f"not within {within_s} s"
        time.sleep(0.002)
    return time.monotonic() - start


async def until(what: Callable[[], bool], within_s: float = DEADLINE_S) -> None:
    """wait_until, for what the running loop has a part in."""
    async with asyncio.timeout(within_s):
        while not what():  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.002)


def gone(pids: Iterable[int]) -> Callable[[], bool]:
    numbers = tuple(pids)
    return lambda: not any(alive(pid) for pid in numbers)


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
