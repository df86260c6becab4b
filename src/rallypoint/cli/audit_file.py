"""The file of the audit log. A thread writes it, so that a disk that hangs delays no node."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import stat
import threading
from typing import Final

from rallypoint import logs
from rallypoint.errors import UsageError

_log = logs.tidy("rallypoint.serve")

STREAMS: Final = {"-": 2, "/dev/stderr": 2, "/dev/stdout": 1}
"""The paths that are no files, and the descriptors of this process for which they stand."""
WAITING_MAX: Final = 4_096
"""How many lines may wait for the disk. More are dropped, and counted."""
CLOSE_WITHIN_S: Final = 2.0
# Without O_NONBLOCK a pipe that nobody reads would hold the start up.
_FLAGS: Final = (
    os.O_WRONLY
    | os.O_APPEND
    | os.O_CREAT
    | os.O_CLOEXEC
    | os.O_NOCTTY
    | os.O_NOFOLLOW
    | os.O_NONBLOCK
)
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class AuditFile:
    """Appends lines to a file of mode 0600. `path`: also one of STREAMS.

    `write` may be called in any thread, and never blocks. Raises UsageError if the file cannot be
    opened, is no regular file, belongs to another user than this one or root, or can be read by
    others. A symbolic link is not followed.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = _opened(path)
        self._waiting: queue.Queue[bytes | None] = queue.Queue(WAITING_MAX)
        self._is_renamed = threading.Event()
        self._dropped = 0
        self._is_cut = False
        """Whether the last line in the file has no end."""
        self._thread = threading.Thread(target=self._work, name="rallypoint-audit", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Append a line soon."""
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._dropped += 1
            text = "the audit log cannot be written fast enough: %d records are lost"
            _log.error(text, self._dropped, extra=logs.limit(1, 60.0))

    def reopen(self) -> None:
        """Open the file by its name again soon, and before the next line: it was renamed."""
        self._is_renamed.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(b"")  # wakes the thread

    def close(self) -> None:
        """Write what waits, within CLOSE_WITHIN_S."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSE_WITHIN_S)
        self._thread.join(CLOSE_WITHIN_S)

    def _work(self) -> None:
        while (line := self._waiting.get()) is not None:
            try:
                if self._is_renamed.is_set():
                    self._is_renamed.clear()
                    self._open_again()
                self._append(line)
            except OSError as error:
                self._dropped += 1
                text = "the audit log %s cannot be written: %s; %d records are lost"
                told = (self._path, error.strerror or error, self._dropped)
                _log.error(text, *told, extra=logs.limit(1, 60.0))
        if self._path not in STREAMS:
            os.close(self._file)

    def _append(self, line: bytes) -> None:
        """Raises OSError if the line cannot be written, or only a part of it."""
        if not line:  # It has only waked the thread.
            return
        data = b"\n" + line if self._is_cut else line
        written = os.write(self._file, data)
        self._is_cut = written < len(data)
        if self._is_cut:  # A disk that becomes full takes a part.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open_again(self) -> None:
        try:
            file = _opened(self._path)
        except UsageError as error:
            _log.error("%s; the former file is used on (hint: %s)", error.message, error.hint)
            return
        if self._path not in STREAMS:
            os.close(self._file)
        self._file, self._is_cut = file, False


def _opened(path: str) -> int:
    if path in STREAMS:
        return STREAMS[path]
    try:
        file = os.open(path, _FLAGS, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise _no_file(path, "a pipe that nobody reads, or a socket") from error
        raise UsageError(
            f"the audit log {path!r} cannot be opened: {error.strerror or error}",
            hint="give a file, not a link, in a directory that exists and that this user may write",
        ) from error
    about = os.fstat(file)
    if not stat.S_ISREG(about.st_mode):
        os.close(file)
        raise _no_file(path, _kind(about.st_mode))
    if about.st_uid not in (os.geteuid(), 0):
        os.close(file)
        raise UsageError(
            f"the audit log {path!r} belongs to user {about.st_uid}, who could change it",
            hint="give a file of this user, in a directory where no other user may write",
        )
    if about.st_mode & _OTHERS:
        os.close(file)
        raise UsageError(
            f"the audit log {path!r} can be read or written by other users",
            hint=f"chmod 600 {path}; for logrotate: create 0600",
        )
    return file


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "no file"


def _no_file(path: str, what: str) -> UsageError:
    return UsageError(
        f"the audit log {path!r} is {what}, which keeps nothing and may hold the records up",
        hint="give a file; or - or /dev/stdout for what collects the output of this process",
    )
