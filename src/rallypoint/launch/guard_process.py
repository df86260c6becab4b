"""The guard process: after the agent's end, it kills its workers and removes its files.

`guard.Guard` runs this file as a script, with `-I -S` and the read end of a pipe as its standard
input. When the agent dies in any way, the pipe ends. The script imports only modules that are built
in or frozen, so that it starts in about 20 ms and stays small. The readers of /proc are here,
because the script cannot import the package, but the package can import the script.
"""

# Neither pathlib nor contextlib: importing them would double the time that a guard takes to start.
# ruff: noqa: PTH106, PTH108, PTH118, PTH123, PTH208, SIM105

from __future__ import annotations

import errno
import os
import signal
import sys
import time

KILL_WITHIN_S = 10.0  # only a process in uninterruptible sleep survives a few milliseconds of this
_PAUSE_S = 0.005
_DEAD_STATES = "ZXx"
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


def _follow(line: bytes, start_times: dict[int, int], scratch: list[bytes]) -> None:
    if line.startswith(SCRATCH):
        scratch.append(line[len(SCRATCH) :])
        return
    words = line.split()
    if len(words) == 3 and words[0] == b"add":
        start_times[int(words[1])] = int(words[2])
    elif len(words) == 2 and words[0] == b"remove":
        start_times.pop(int(words[1]), None)


def main() -> None:
    """Read the agent's lines on standard input until it ends, then kill the registered groups."""
    ignored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    # The agent starts this process with these signals blocked, so that none could end it before
    # this line.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    start_times: dict[int, int] = {}
    scratch: list[bytes] = []
    rest = b""
    while chunk := os.read(0, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            _follow(line, start_times, scratch)
    kill_groups(start_times, KILL_WITHIN_S)
    for path in scratch:
        remove_scratch(path)


if __name__ == "__main__":
    main()
