"""Measured processes: they are started, watched, and ended by their id.

They run with default settings, without those of this shell, and import the same `rallypoint` as
this process. A terminal's signals do not reach them, so this process ends them. If it is killed,
the kernel ends them (child.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol

from rallypoint import environments
from rallypoint.bench import child, sweeper

PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]
DEADLINE_S: Final = 60.0
"""After this many seconds of a wait the measurement has failed."""
SAY_AFTER_S: Final = 10.0
"""After this many seconds of a wait, a log line names its purpose."""
ANSWER_S: Final = 5.0
"""How many seconds a healthy process may take to answer over HTTP."""
POLL_S: Final = 0.02
TAIL_BYTES: Final = 600
"""How much of the end of a process's output goes into an error."""
_log: Final = logging.getLogger(__name__)


class BenchError(Exception):
    """Nothing could be measured. The text has the reason, and `hint` what the user can do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without any setting of Rallypoint's, and without a launcher's.

    What is measured on one machine has nodes of its own.
    """
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith("RALLYPOINT_") and not environments.is_launchers(name)
    }
    path = os.pathsep.join([str(PACKAGE_ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path} | more


def start(arguments: Sequence[str], *, env: dict[str, str], **options: Any) -> _Bytes:
    """Start this interpreter with these arguments, in its own session.

    It ends with this process; on Linux, with the thread that calls this. `options`: of
    subprocess.Popen.
    """
    python = (sys.executable, *arguments)
    return subprocess.Popen(
        [*_SCRIPT, child.__file__, str(os.getpid()), *python],
        env=env,
        start_new_session=True,
        **options,
    )


_Bytes = subprocess.Popen[bytes]
_SCRIPT: Final = (sys.executable, "-IS")
"""Starts a file that needs only the standard library, in milliseconds."""


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is removed with the block, and also if this process is killed within it."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        sweeping = subprocess.Popen(
            [*_SCRIPT, sweeper.__file__, folder], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            yield Path(folder)
        finally:
            end([sweeping])


class Wait:
    """One wait, of at most `within_s` seconds from `since_s` on, or from now.

    If it takes long, one log line names its purpose.
    """

    def __init__(self, waited_for: str, within_s: float, since_s: float = 0.0) -> None:
        self._waited_for, self._within_s = waited_for, within_s
        self._since_s = max(since_s, time.monotonic())
        self._has_said = False

    def check(self) -> None:
        """Call it regularly. Raises BenchError if the wait has taken too long."""
        waited_s = time.monotonic() - self._since_s
        if waited_s > self._within_s:
            raise BenchError(f"not within {self._within_s:g} s: {self._waited_for}")
        if waited_s > SAY_AFTER_S and not self._has_said:
            self._has_said = True
            _log.warning("waiting for %.0f s by now: %s", waited_s, self._waited_for)


def wait_until(
    what: Callable[[], bool],
    waited_for: str,
    within_s: float = DEADLINE_S,
    unless: Callable[[], str] = lambda: "",
) -> None:
    """Poll until `what` is true. `unless` returns why it cannot become true any more, or "".

    Events contain their own times, so a late poll changes no figure. Raises BenchError.
    """
    wait = Wait(waited_for, within_s)
    while not what():
        problem = unless()
        if problem:
            raise BenchError(f"waited for {waited_for}, but {problem}")
        wait.check()
        time.sleep(POLL_S)


def tail_of(said: IO[bytes]) -> str:
    """The end of what a process has written to this file."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - TAIL_BYTES))
    return said.read().decode("utf-8", "replace").strip()


def spread(nodes: int, processes: int, least: int = 1) -> list[int]:
    """How many nodes each process has: at least `least`, so there may be fewer processes."""
    count = max(1, min(processes, nodes // least))
    share, more = divmod(nodes, count)
    return [share + (index < more) for index in range(count)]


# -- ending them -----------------------------------------------------------------------------------


class _Popen(Protocol):
    """What is used of `subprocess.Popen`, whether its pipes have text or bytes."""

    stdin: Any
    stdout: Any

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


def end(processes: Sequence[_Popen]) -> None:
    """Kill all of them, including stopped ones, and reap them."""
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def tree_of(pid: int) -> list[int]:
    """The process (first) and all its present descendants, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    tree = [pid]
    for each in tree:
        tree += children.get(each, [])
    return tree


def cpu_of_tree_s(pid: int) -> float:
    """CPU seconds of a process, of its present descendants, and of those that they waited for."""
    ticks = 0
    for each in tree_of(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def kill_tree(pid: int) -> float:
    """Send SIGKILL to a process and all its descendants. Returns the time of the first one."""
    tree = tree_of(pid)
    killed_s = time.monotonic()
    for each in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    return killed_s
