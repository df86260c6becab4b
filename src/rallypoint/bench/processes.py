"""Processes that are measured: how they are started, watched, and ended by their id.

They are started with default settings, whatever this shell has set, and import the same
`rallypoint` as this process does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]
DEADLINE_S: Final = 60.0
"""How long anything may take before the measurement has failed."""
POLL_S: Final = 0.02


class BenchError(Exception):
    """Nothing could be measured. The text says why; `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without any setting of Rallypoint's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RALLYPOINT_")}
    path = os.pathsep.join([str(PACKAGE_ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path} | more


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at; nobody else is likely to take it meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_until(
    what: Callable[[], bool],
    waited_for: str,
    within_s: float = DEADLINE_S,
    unless: Callable[[], str] = lambda: "",
) -> None:
    """Poll until it is so. `unless`: a text as soon as it cannot be so any more.

    What is waited for carries its own time, so looking late changes no figure. Raises BenchError.
    """
    ends_s = time.monotonic() + within_s
    while not what():
        problem = unless()
        if problem:
            raise BenchError(f"waited for {waited_for}, but {problem}")
        if time.monotonic() > ends_s:
            raise BenchError(f"not within {within_s:g} s: {waited_for}")
        time.sleep(POLL_S)


# -- ending them -----------------------------------------------------------------------------------


class _Popen(Protocol):
    """What `subprocess.Popen` is here, whatever its pipes carry."""

    stdin: Any
    stdout: Any

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


def end(processes: Sequence[_Popen]) -> None:
    """Kill them, stopped ones too, and take their exit codes."""
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def tree_of(pid: int) -> list[int]:
    """The process and all that descend from it, as /proc shows them now; it comes first."""
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


def kill_tree(pid: int) -> float:
    """SIGKILL to a process and all that descend from it; when the first one got it."""
    tree = tree_of(pid)
    killed_s = time.monotonic()
    for each in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    return killed_s
