"""The system's limits for this process: open files, processes, memory.

A command that needs many files checks the limit before it starts anything. If the system refuses
something later, the command ends with an error that names the limit.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from pathlib import Path
from typing import Final

from rallypoint.errors import ExitCode, RallypointError

OWN_FILES: Final = 24
"""The open files of an agent besides those for its workers: loop, logs, guard, channel,
coordinator.
"""
WORKER_FILES: Final = 4
"""The open files for each worker: two pipes, its pidfd, and its connection to the agent."""
LOG_FILES: Final = 2
SERVE_FILES: Final = 32
"""With fewer open files, a coordinator has none for connections."""
ADDRESS_SPACE_BYTES: Final = 256 * 1024**2
"""With less memory, a new thread may never get memory, and the thread that started it would hang.
"""

_RAISE_FILES: Final = (
    "raise it: `ulimit -n 1024` in a shell, LimitNOFILE= of a service, "
    "--ulimit nofile= of a container"
)


class ResourceError(RallypointError):
    """The system refuses a resource that a command needs. No part of the command keeps running."""

    exit_code = ExitCode.USAGE


def check(what: str, files: int) -> None:
    """Raises ResourceError if this process may not open this many files, or use enough memory.

    The hard limit on files counts, because a command that needs many raises the soft one to it.
    """
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY and space < ADDRESS_SPACE_BYTES:
        raise ResourceError(
            f"{what} needs {_mib(ADDRESS_SPACE_BYTES)} of address space, and this process may "
            f"have {_mib(space)}",
            hint="raise it: `ulimit -v unlimited` in a shell, LimitAS= of a service",
        )
    _check_files(what, files)


def _check_files(what: str, needed: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    inherited = _inherited_files()
    if most != resource.RLIM_INFINITY and most < needed + inherited:
        also = f", of which it was started with {inherited}" if inherited else ""
        raise ResourceError(
            f"{what} needs {needed} open files, and this process may have {most}{also}",
            hint=_RAISE_FILES,
        )


def _inherited_files() -> int:
    """How many files this process inherited beside the standard three."""
    try:
        return max(0, sum(1 for _ in Path("/dev/fd").iterdir()) - 4)  # the listing itself uses one
    except OSError:
        return 0


def agent_files(workers: int, *, has_log_files: bool) -> int:
    """The most open files of an agent with this many workers, while its run has few nodes."""
    return OWN_FILES + workers * (WORKER_FILES + (LOG_FILES if has_log_files else 0))


def refusal(error: BaseException) -> ResourceError | None:
    """The error as that of a limit of the system; None if it is another error."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if number == errno.EMFILE or os.strerror(errno.EMFILE) in text:
        return ResourceError(
            f"this process may have {_limit(resource.RLIMIT_NOFILE)} open files, and needs more",
            hint=_RAISE_FILES,
        )
    if number == errno.ENFILE:
        return ResourceError(
            "this machine has too many open files, in all of its processes together",
            hint="end the processes that hold them, or raise fs.file-max",
        )
    # For a thread CPython raises its own RuntimeError; for a fork the error is EAGAIN.
    if "can't start new thread" in text or (number == errno.EAGAIN and _is_of_fork(error)):
        return ResourceError(
            "no other process or thread can be started (limits: "
            f"{_limit(resource.RLIMIT_NPROC)} processes of this user, {_space()} of address space)",
            hint="end some, or raise the limit: `ulimit -u` and `ulimit -v`, TasksMax= of a "
            "service, --pids-limit of a container",
        )
    if number == errno.ENOMEM or isinstance(error, MemoryError) or _is_unmapped(error):
        return ResourceError(
            f"there is not enough memory (limit: {_space()} of address space)",
            hint="raise the limit, `ulimit -v` or that of the container, or start fewer workers",
        )
    if isinstance(error, OSError) and error.filename == sys.executable:
        return ResourceError(
            f"this user cannot start {sys.executable!r}, the Python of this process: "
            f"{error.strerror}",
            hint="install Python where this user may run it, and create the environment again",
        )
    return None


def _is_of_fork(error: BaseException) -> bool:
    # A write to a pipe that is full has this attribute.
    is_of_write = hasattr(error, "characters_written")
    return isinstance(error, BlockingIOError) and error.filename is None and not is_of_write


def _is_unmapped(error: BaseException) -> bool:
    """Whether a library could not be loaded for lack of memory."""
    is_mapping = any(each in str(error) for each in ("failed to map", "cannot allocate memory"))
    return isinstance(error, ImportError) and is_mapping


def _space() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return "any amount" if soft == resource.RLIM_INFINITY else _mib(soft)


def _mib(size: int) -> str:
    return f"{size // 1024**2} MiB"


def _limit(which: int) -> str:
    soft, _ = resource.getrlimit(which)
    return "any number of" if soft == resource.RLIM_INFINITY else str(soft)
