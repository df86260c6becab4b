"""Kills the workers' process groups if the agent ends in any way, even by `kill -9`.

The agent cannot clean up after its own SIGKILL, and the kernel's parent-death signal reaches the
workers but not their children. So a small process in its own session has the list of groups, a copy
of each connection to a coordinator, and one of two connected sockets (guard_process.py). This file
is the agent's side of it. It must not decide when workers stop; worker_processes.py does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rallypoint.client import fork_safety
from rallypoint.launch import guard_process
from rallypoint.launch.worker_env import inherited_environment

_IGNORED_BY_GUARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LIVED_LONG_S = 10.0
_RESTART_PAUSE_S_MAX = 5.0
_REAP_PAUSE_S = 0.005
_NO_ROOM = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM})
# variables that the interpreter may need
_KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class Guard:
    """Registers process groups and connections with a guard process, and keeps one running.

    Use it from the thread of the running loop. Only `add` and `remove` may be called from the
    thread that starts a worker, because the loop may be busy while the agent is killed. No call
    waits: lines go through a non-blocking socket, and the rest is sent when there is room.
    `on_lost`, if given, is called with the dead guard's pid each time a guard dies, before another
    is started.
    """

    def __init__(self, *, on_lost: Callable[[int], None] | None = None) -> None:
        self._on_lost = on_lost
        # for all state that a line changes; never held during a wait
        self._lock = threading.RLock()
        self._start_times: dict[int, int] = {}
        self._connections: weakref.WeakValueDictionary[int, socket.socket]
        self._connections = weakref.WeakValueDictionary()
        self._numbers = itertools.count(1)
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
                for number, connection in self._connections.items():
                    process.keep(number, connection)
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

    def keep(self, connection: socket.socket) -> Callable[[], None]:
        """See client.sockets.SocketKeeper."""
        with self._lock:
            if self._closing:
                return lambda: None
            number = next(self._numbers)
            self._connections[number] = connection
            if self._process is not None:
                self._process.keep(number, connection)
        return functools.partial(self._drop, number)

    def _drop(self, number: int) -> None:
        with self._lock:
            self._connections.pop(number, None)
            if self._process is not None:
                self._process.drop(number)

    async def close(self, timeout_s: float = 2.0) -> None:
        """Kill the registered groups and end the guard, within `timeout_s` seconds.

        A guard that needs longer, because a process does not die, ends later by itself. Connections
        that are still open are left alone, because the agent is alive. Idempotent.
        """
        if self._restart is not None:
            self._restart.cancel()
        with self._lock:
            self._closing = True
            for number in list(self._connections):
                self._drop(number)
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


class _Copy:
    """A connection whose copy is to be sent. It must not be closed before it is sent or dropped."""

    __slots__ = ("connection", "number")

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.number = number
        self.connection = connection


class _GuardProcess:
    """One guard process with a socket for lines to it, and a pipe that ends when it dies."""

    def __init__(self, on_death: Callable[[_GuardProcess], None], lock: threading.RLock) -> None:
        self.on_death = on_death
        self.lock = lock
        self.unsent: deque[bytearray | _Copy] = deque()
        self.waits_for_room = False
        self.is_writing = False
        self.started_at = time.monotonic()
        self.loop = asyncio.get_running_loop()
        self.dead: asyncio.Future[None] = self.loop.create_future()
        self.popen, self.lines, self.life_fd = _spawn()
        self.lines.setblocking(False)
        fork_safety.close_in_children(self.lines)
        self.loop.add_reader(self.life_fd, self._ended)

    @property
    def lived_s(self) -> float:
        return time.monotonic() - self.started_at

    def send(self, line: str) -> None:
        """Send a line. May be called from any thread."""
        with self.lock:
            # One message for many lines, because each message uses up room.
            if self.unsent and isinstance(self.unsent[-1], bytearray):
                self.unsent[-1] += line.encode()
            else:
                self.unsent.append(bytearray(line.encode()))
            self._send_what_fits()

    def keep(self, number: int, connection: socket.socket) -> None:
        """Send a copy of a connection's descriptor."""
        with self.lock:
            self.unsent.append(_Copy(number, connection))
            self._send_what_fits()

    def drop(self, number: int) -> None:
        """Make the guard close its copy. The connection may be closed after this."""
        with self.lock:
            for item in self.unsent:
                if isinstance(item, _Copy) and item.number == number:
                    self.unsent.remove(item)
                    return
            self.send(f"drop {number}\n")

    def _send_what_fits(self) -> None:
        # A call within a call: the garbage collector has closed a connection, and its line is last.
        if self.waits_for_room or self.is_writing:
            return
        self._write()
        if self.unsent:
            self.waits_for_room = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: the agent has ended
                self.loop.call_soon_threadsafe(self._flush)

    def _write(self) -> None:
        self.is_writing = True
        try:
            while self.unsent:
                rest = self._write_one(self.unsent.popleft())
                if rest is not None:
                    self.unsent.appendleft(rest)
                    return
        finally:
            self.is_writing = False

    def _write_one(self, item: bytearray | _Copy) -> bytearray | _Copy | None:
        """Write a part of it, or nothing. Returns what is left if there is no more room."""
        try:
            if isinstance(item, _Copy):
                # The kernel takes such a short message as a whole, or not at all.
                line = f"keep {item.number}\n".encode()
                socket.send_fds(self.lines, [line], [item.connection.fileno()])
            else:
                del item[: self.lines.send(item)]
                return item or None
        except OSError as error:
            if error.errno in _NO_ROOM:
                return item
            # The guard has died, and the end of life_fd follows in a moment and means the same. Or
            # a copy is refused, as too many are on their way: then the kernel alone ends that one.
        return None

    def _flush(self) -> None:
        with self.lock:
            self._write()
            self.waits_for_room = bool(self.unsent)
            if self.unsent:
                self.loop.add_writer(self.lines, self._flush)
            elif self.lines.fileno() >= 0:
                self.loop.remove_writer(self.lines)

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
            if self.lines.fileno() >= 0:
                self.loop.remove_writer(self.lines)
                self.lines.close()

    async def close(self, timeout_s: float) -> None:
        self._close_lines()
        await asyncio.wait([self.dead], timeout=timeout_s)


def _spawn() -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """Start the process. Returns it with the socket of lines to it and the pipe from it."""
    lines_read, lines_write = socket.socketpair()
    life_read, life_write = os.pipe()
    try:
        popen = _spawn_with(lines_read.fileno(), life_write)
    except BaseException:
        lines_write.close()
        os.close(life_read)
        raise
    finally:
        lines_read.close()
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
