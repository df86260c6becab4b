"""The guard process: removes what an agent and its workers leave behind once the agent is gone.

`guard.Guard` runs this file as a script, with `-I -S` and the read end of a pipe as its
standard input; the agent's death, however it comes, is the end of that pipe. It imports only what
is built in or frozen, so that it starts in about 20 ms and stays small. For the same reason the
readers of /proc live here: the script can import nothing of the package, the package can import it.
"""

# Neither pathlib nor contextlib: importing them would double the time that a guard takes to start.
# ruff: noqa: PTH106, PTH108, PTH118, PTH123, PTH208, SIM105

from __future__ import annotations

import errno
import os
import signal
import sys
import time

KILL_WITHIN_S = 10.0  # only a process in uninterruptible sleep outlives a few milliseconds of this
_PAUSE_S = 0.005
_DEAD_STATES = "ZXx"
SCRATCH = b"scratch "

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection


class Process:
    """What /proc/PID/stat says of one process. `start_time` is in clock ticks since the boot."""

    __slots__ = ("parent", "pid", "session", "start_time", "state")

    def __init__(self, pid: int, state: str, parent: int, session: int, start_time: int) -> None:
        self.pid = pid
        self.state = state
        self.parent = parent
        self.session = session
        self.start_time = start_time

    @property
    def alive(self) -> bool:
        """False for a zombie, which holds nothing but its number."""
        return self.state not in _DEAD_STATES


def read_process(pid: int) -> Process | None:
    """One process by its pid, or None if it is gone or this platform has no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name may hold spaces and parentheses; the last parenthesis ends it (proc(5)).
    fields = text[text.rfind(b")") + 2 :].split()
    return Process(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def read_all_processes() -> list[Process]:
    """Every process that /proc shows; empty on a platform without it. About 10 µs each."""
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
    """SIGKILL to a process group; no error if it is gone."""
    try:
        os.killpg(pgid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # macOS says "not permitted" of a group that has only zombies


def open_pidfd(pid: int) -> int:
    """os.pidfd_open. Raises OSError: ESRCH, or what an old kernel, a sandbox or macOS says."""
    if sys.platform == "linux":
        return os.pidfd_open(pid)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def kill_member(pid: int, session: int) -> None:
    """SIGKILL to a process if it is still of that session, checked behind a pidfd if possible."""
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
    """Kill every group, with its whole session, that is still the one that was registered.

    `start_times` maps a group's number (its leader's pid; leaders are session leaders) to the
    leader's start time, 0 where the platform does not tell. Returns when nothing is left alive,
    or after `within_s` seconds.
    """
    groups = {pgid for pgid, start_time in start_times.items() if _is_same(pgid, start_time)}
    for pgid in groups:
        kill_group(pgid)
    give_up_at = time.monotonic() + within_s
    # A kill is not done when the call returns, and a member may have forked before it came.
    while (living := living_in_sessions(groups)) and time.monotonic() < give_up_at:
        for session, members in living.items():
            kill_group(session)
            for member in members:
                kill_member(member.pid, session)
        time.sleep(_PAUSE_S)


def _is_same(pgid: int, start_time: int) -> bool:
    # The kernel does not reuse a number while it names a living process's group or session. So
    # another start time means that all of our processes are gone, and no leader at all means that
    # every process in the session is ours.
    leader = read_process(pgid)
    return leader is None or start_time in (0, leader.start_time)


def remove_scratch(path: bytes) -> None:
    """Remove the agent's directory of small files; what else is in it stays, and so does it."""
    try:
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        os.rmdir(path)
    except OSError:
        pass  # the agent has removed it itself, or a file system does not answer as it should


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
    """Follows the agent's lines on standard input until its end, then kills what is registered."""
    ignored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    # The agent starts us with these blocked, so that none could end us before this line.
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
