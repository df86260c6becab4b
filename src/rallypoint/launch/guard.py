"""Kills the workers' process groups if the agent ends in any way, even by `kill -9`.

The agent cannot clean up after its own SIGKILL, and the kernel's parent-death signal reaches the
workers but not their children. So a small process in its own session has the list of groups and the
end of a pipe (guard_process.py). This file is the agent's side of it. It must not decide when
workers stop; worker_processes.py does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rallypoint.launch import guard_process
from rallypoint.launch.worker_env import inherited_environment

_IGNORED_BY_GUARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LIVED_LONG_S = 10.0
_RESTART_PAUSE_S_MAX = 5.0
_REAP_PAUSE_S = 0.005
# variables that the interpreter may need
_KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class Guard:
    """Registers process groups with a guard process, and keeps one running.

    Use it from the thread of the running loop. Only `add` and `remove` may be called from the
    thread that starts a worker, because the loop may be busy while the agent is killed. No call
    waits: lines go through a non-blocking pipe, and the rest is sent when there is room. `on_lost`,
    if given, is called with the dead guard's pid each time a guard dies, before another is started.
    """

    def __init__(self, *, on_lost: Callable[[int], None] | None = None) -> None:
        self._on_lost = on_lost
        # for all state that a line changes; never held during a wait
        self._lock = threading.RLock()
        self._start_times: dict[int, int] = {}
        self._scratch: Path | None = None
        self._process: _GuardProcess | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._quick_deaths = 0
        self._closing = False

    @property
    def pid(self) -> int | None:
        """The guard's pid; None before the start, between two guards and after close()."""
        return self._process.popen.pid if self._process is not None else None

    def children(self) -> set[int]:
        """The guard itself, and the leaders of the registered groups. From any thread."""
        with self._lock:
            process = self._process
            guards = {process.popen.pid} if process is not None else set()
            return guards | self._start_times.keys()

    def start(self) -> None:
        """Start the guard process; a second call does nothing. Raises OSError if it cannot."""
        if self._process is None and not self._closing:
            process = _GuardProcess(self._noticed_death, self._lock)
            with self._lock:
                self._process = process
                for pgid, start_time in self._start_times.items():
                    process.send(f"add {pgid} {start_time}\n")
            if self._scratch is not None:
                self.remove_in_the_end(self._scratch)

    def remove_in_the_end(self, scratch: Path) -> None:
        """Register a directory that the guard removes after the agent's end, if still there."""
        self._scratch = scratch
        if "\n" not in str(scratch):
            self._send(f"{guard_process.SCRATCH.decode()}{scratch}\n")

    def add(self, pgid: int) -> None:
        """Register a group. Its leader, a session leader, must be alive or not yet waited for.

        After `close` has begun, the group is killed instead, which may take a moment.
        """
        leader = guard_process.read_process(pgid)
        start_time = leader.start_time if leader is not None else 0
        with self._lock:
            if not self._closing:
                self._start_times[pgid] = start_time
                self._send(f"add {pgid} {start_time}\n")
                return
        # The start hung for longer than the agent waited, so only this code can end the group.
        guard_process.kill_groups({pgid: start_time}, guard_process.KILL_WITHIN_S)

    def remove(self, pgid: int) -> None:
        """Unregister a group without processes. No error if it is not registered."""
        with self._lock:
            if self._start_times.pop(pgid, None) is not None:
                self._send(f"remove {pgid}\n")

    async def close(self, timeout_s: float = 2.0) -> None:
        """Kill the registered groups and end the guard, within `timeout_s` seconds.

        A guard that needs longer, because a process does not die, ends later by itself. Idempotent.
        """
        if self._restart is not None:
            self._restart.cancel()
        with self._lock:
            self._closing = True
            process, self._process = self._process, None
            start_times = dict(self._start_times)
        # there is no guard now, or it does not have all groups
        if process is None or process.unsent:
            await asyncio.to_thread(guard_process.kill_groups, start_times, timeout_s)
        if process is not None:
            await process.close(timeout_s)
        self._start_times.clear()

    def _send(self, line: str) -> None:
        if self._process is not None:
            self._process.send(line)

    def _noticed_death(self, process: _GuardProcess) -> None:
        if process is not self._process:
            return
        with self._lock:
            self._process = None
        if self._on_lost is not None:
            self._on_lost(process.popen.pid)
        self._start_again_after(process.lived_s)

    def _start_again_after(self, lived_s: float) -> None:
        # If every guard dies at once, the machine must not spend its time on starting guards.
        self._quick_deaths = 0 if lived_s > _LIVED_LONG_S else self._quick_deaths + 1
        pause_s = 0.0
        if self._quick_deaths > 1:
            pause_s = min(_RESTART_PAUSE_S_MAX, 0.1 * 2 ** min(self._quick_deaths, 10))
        self._restart = asyncio.get_running_loop().call_later(pause_s, self._try_start)

    def _try_start(self) -> None:
        try:
            self.start()
        except OSError:  # no memory, or too many processes: try later
            self._start_again_after(0.0)


class _GuardProcess:
    """One guard process with two pipes: one for lines to it, and one that ends when it dies."""

    def __init__(self, on_death: Callable[[_GuardProcess], None], lock: threading.RLock) -> None:
        self.on_death = on_death
        self.lock = lock
        self.unsent = bytearray()
        self.waits_for_room = False
        self.started_at = time.monotonic()
        self.loop = asyncio.get_running_loop()
        self.dead: asyncio.Future[None] = self.loop.create_future()
        self.popen, self.lines_fd, self.life_fd = _spawn()
        os.set_blocking(self.lines_fd, False)
        self.loop.add_reader(self.life_fd, self._ended)

    @property
    def lived_s(self) -> float:
        return time.monotonic() - self.started_at

    def send(self, line: str) -> None:
        """Send a line. May be called from any thread."""
        with self.lock:
            self.unsent += line.encode()
            if self.waits_for_room:
                return
            self._write()
            if self.unsent:
                self.waits_for_room = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: the agent has ended
                    self.loop.call_soon_threadsafe(self._flush)

    def _write(self) -> None:
        if self.lines_fd < 0:
            self.unsent.clear()
            return
        try:
            del self.unsent[: os.write(self.lines_fd, self.unsent)]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # the end of life_fd follows in a moment and means the same
            self.unsent.clear()

    def _flush(self) -> None:
        with self.lock:
            self._write()
            self.waits_for_room = bool(self.unsent)
            if self.unsent:
                self.loop.add_writer(self.lines_fd, self._flush)
            elif self.lines_fd >= 0:
                self.loop.remove_writer(self.lines_fd)

    def _ended(self) -> None:
        self.loop.remove_reader(self.life_fd)
        os.close(self.life_fd)
        self._close_lines()
        self._reap()
        self.on_death(self)

    def _reap(self) -> None:
        # Its files are closed a moment before wait() can succeed.
        if self.popen.poll() is not None:
            self.dead.set_result(None)
        else:
            self.loop.call_later(_REAP_PAUSE_S, self._reap)

    def _close_lines(self) -> None:
        with self.lock:
            if self.lines_fd >= 0:
                self.loop.remove_writer(self.lines_fd)
                os.close(self.lines_fd)
                self.lines_fd = -1

    async def close(self, timeout_s: float) -> None:
        self._close_lines()
        await asyncio.wait([self.dead], timeout=timeout_s)


def _spawn() -> tuple[subprocess.Popen[bytes], int, int]:
    """Start the process. Returns it with the ends of the pipes to it and from it."""
    lines_read, lines_write = os.pipe()
    life_read, life_write = os.pipe()
    try:
        popen = _spawn_with(lines_read, life_write)
    except BaseException:
        os.close(lines_write)
        os.close(life_read)
        raise
    finally:
        os.close(lines_read)
        os.close(life_write)
    return popen, lines_write, life_read


def _spawn_with(stdin_fd: int, stdout_fd: int) -> subprocess.Popen[bytes]:
    # The signal mask is inherited through exec, so that no signal can end the guard before it
    # ignores them. Its own session protects it from the terminal's signals, "/" keeps no file
    # system busy, and it does not get the agent's environment, which has a token.
    arguments = [sys.executable, "-I", "-S", guard_process.__file__, f"agent={os.getpid()}"]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED_BY_GUARD)
    try:
        return subprocess.Popen(
            arguments,
            stdin=stdin_fd,
            stdout=stdout_fd,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={k: v for k, v in inherited_environment().items() if k in _KEPT_ENVIRONMENT},
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
