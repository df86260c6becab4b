"""The guard process: after the agent's end, it ends its connections, workers and files.

`guard.Guard` runs this file as a script, with `-I -S` and one end of a pair of Unix sockets as its
standard input. When the agent dies in any way, its end closes. The script imports little, so that
it starts in about 20 ms and stays small. The readers of /proc are here, because the script cannot
import the package, but the package can import the script.

It has a copy of each connection of the agent to a coordinator, and leaves it alone while the agent
lives. A kernel that closes a socket with unread data sends a reset in place of a FIN, and a reset
is no proof that a process has ended (core/endings.py). With the copy, the socket is not closed when
the agent dies, so that this process can send the FIN, whatever was unread.
"""

# Neither pathlib nor contextlib: importing them would double the time that a guard takes to start.
# ruff: noqa: PTH106, PTH108, PTH118, PTH123, PTH208, SIM105

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time

KILL_WITHIN_S = 10.0  # only a process in uninterruptible sleep survives a few milliseconds of this
FIN_WITHIN_S = 2.0  # longer than TCP takes to send a lost FIN again
_PAUSE_S = 0.005
_DEAD_STATES = "ZXx"
_CHUNK_BYTES = 65536
SCRATCH = b"scratch "

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection


class Process:
    """One process, from /proc/PID/stat. `start_time` is in clock ticks since the boot."""

    __slots__ = ("parent", "pid", "session", "start_time", "state")

    def __init__(self, pid: int, state: str, parent: int, session: int, start_time: int) -> None:
        self.pid = pid
        self.state = state
        self.parent = parent
        self.session = session
        self.start_time = start_time

    @property
    def alive(self) -> bool:
        """False for a zombie, which only keeps its pid."""
        return self.state not in _DEAD_STATES


def read_process(pid: int) -> Process | None:
    """One process by its pid; None if it has ended or this platform has no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name may have spaces and parentheses; the last parenthesis ends it (proc(5)).
    fields = text[text.rfind(b")") + 2 :].split()
    return Process(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def read_all_processes() -> list[Process]:
    """All processes in /proc; empty on a platform without it. It takes about 10 µs for each."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    found = (read_process(int(name)) for name in names if name.isdigit())
    return [process for process in found if process is not None]


def living_in_sessions(sessions: Collection[int]) -> dict[int, list[Process]]:
    """The living processes of each session; sessions without any are left out."""
    living: dict[int, list[Process]] = {}
    for process in read_all_processes():
        if process.session in sessions and process.alive:
            living.setdefault(process.session, []).append(process)
    return living


def kill_group(pgid: int) -> None:
    """Send SIGKILL to a process group. No error if it has ended."""
    try:
        os.killpg(pgid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # macOS returns "not permitted" for a group of zombies


def open_pidfd(pid: int) -> int:
    """os.pidfd_open. Raises OSError: ESRCH, or that of an old kernel, a sandbox or macOS."""
    if sys.platform == "linux":
        return os.pidfd_open(pid)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def kill_member(pid: int, session: int) -> None:
    """Kill a process if it is still in that session, which a pidfd checks if possible."""
    try:
        pidfd = open_pidfd(pid)
    except ProcessLookupError:
        return
    except OSError:
        pidfd = -1
    try:
        process = read_process(pid)
        if process is not None and process.session == session:
            _send_kill(pid, pidfd)
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _send_kill(pid: int, pidfd: int) -> None:
    try:
        if sys.platform == "linux" and pidfd >= 0:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def kill_groups(start_times: dict[int, int], within_s: float) -> None:
    """Kill every registered group with its whole session, unless its number now means another.

    `start_times` maps a group's number (the pid of its leader, a session leader) to the leader's
    start time, 0 if the platform has none. Returns when all processes have ended, or after
    `within_s` seconds.
    """
    groups = {pgid for pgid, start_time in start_times.items() if _is_same(pgid, start_time)}
    for pgid in groups:
        kill_group(pgid)
    give_up_at = time.monotonic() + within_s
    # A process may still live when the call returns, and may have forked before the signal arrived.
    while (living := living_in_sessions(groups)) and time.monotonic() < give_up_at:
        for session, members in living.items():
            kill_group(session)
            for member in members:
                kill_member(member.pid, session)
        time.sleep(_PAUSE_S)


def _is_same(pgid: int, start_time: int) -> bool:
    # The kernel does not reuse a number that is the group or session of a living process. So
    # another start time means that all of our processes have ended, and a missing leader means that
    # every process in the session is ours.
    leader = read_process(pgid)
    return leader is None or start_time in (0, leader.start_time)


def remove_scratch(path: bytes) -> None:
    """Remove the agent's directory of small files, unless it has other contents."""
    try:
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        os.rmdir(path)
    except OSError:
        pass  # the agent has removed it itself, or a file system fails


class Kept:
    """What the agent has registered, from its lines.

    `groups`: the start time of each group's leader, as in kill_groups. `scratch`: directories.
    `connections`: copies of the agent's connections, by the numbers that it gave them.
    """

    def __init__(self) -> None:
        self.groups: dict[int, int] = {}
        self.scratch: list[bytes] = []
        self.connections: dict[int, socket.socket] = {}
        self._rest = b""
        self._copy_of_rest: socket.socket | None = None

    def read(self, chunk: bytes, descriptors: list[int]) -> None:
        """Follow the lines in what was read at once.

        A copy comes with the line "keep NUMBER", and one read ends with such a line or within it. A
        line without a copy has lost it, because this process has too many files.
        """
        copy = socket.socket(fileno=descriptors[0]) if descriptors else None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if not lines:
            self._copy_of_rest = self._copy_of_rest or copy
            return
        copies: list[socket.socket | None] = [None] * len(lines)
        copies[0], self._copy_of_rest = self._copy_of_rest, None
        if self._rest:
            self._copy_of_rest = copy
        elif copy is not None:
            copies[-1] = copy
        for line, copy in zip(lines, copies, strict=True):
            self._follow(line, copy)

    def _follow(self, line: bytes, copy: socket.socket | None) -> None:
        if line.startswith(SCRATCH):
            self.scratch.append(line[len(SCRATCH) :])
            return
        words = line.split()
        if len(words) == 3 and words[0] == b"add":
            self.groups[int(words[1])] = int(words[2])
        elif len(words) == 2 and words[0] == b"remove":
            self.groups.pop(int(words[1]), None)
        elif len(words) == 2 and words[0] == b"keep" and copy is not None:
            self.connections[int(words[1])] = copy
        elif len(words) == 2 and words[0] == b"drop":
            # If the agent has closed it, this is the last close, which sends the reset or the FIN
            # that the agent has chosen.
            connection = self.connections.pop(int(words[1]), None)
            if connection is not None:
                connection.close()


def send_fins(connections: Collection[socket.socket]) -> None:
    """Send a FIN on each of a dead agent's connections, whatever is unread there.

    The node's messages that the kernel has taken go before it. With TLS it comes without a
    close_notify.
    """
    for connection in connections:
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the coordinator has ended it


def read_to_the_end(connections: Collection[socket.socket], within_s: float) -> None:
    """Read until the coordinator has ended each connection too, or for `within_s` seconds.

    If they were closed with unread data, a reset would follow the FIN, and arrive before it if the
    FIN is lost on its way.
    """
    give_up_at = time.monotonic() + within_s
    left = list(connections)
    while left and time.monotonic() < give_up_at:
        left = [connection for connection in left if _is_open(connection)]
        if left:
            time.sleep(_PAUSE_S)


def _is_open(connection: socket.socket) -> bool:
    """Whether more may come. Reads what there is, up to a limit."""
    try:
        # The agent has made the socket non-blocking, and its copy is the same socket.
        return bool(connection.recv(_CHUNK_BYTES, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False


def main() -> None:
    """Read the agent's lines on standard input until it ends, then end what it has left."""
    ignored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    # The agent starts this process with these signals blocked, so that none could end it before
    # this line.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    kept = Kept()
    lines = socket.socket(fileno=0)
    while True:
        chunk, descriptors, _, _ = socket.recv_fds(lines, _CHUNK_BYTES, 1)
        if not chunk:
            break
        kept.read(chunk, descriptors)
    # First, because the other nodes wait for it. A copy is left only if the agent has ended without
    # closing the connection: see guard.Guard.close.
    send_fins(kept.connections.values())
    kill_groups(kept.groups, KILL_WITHIN_S)
    for path in kept.scratch:
        remove_scratch(path)
    read_to_the_end(kept.connections.values(), FIN_WITHIN_S)


if __name__ == "__main__":
    main()
