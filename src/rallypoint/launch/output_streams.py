"""The bytes of one pipe and their three destinations: a console, a file, the last lines.

Only the thread of logs.py uses it, except `LastLines.snapshot`. A write may block while its file
blocks, and never raises, because a full disk must not end the job.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

LOG_FILE_MODE = 0o600
LOG_FOLDER_MODE = 0o700
"""Workers' output may contain a password, so others cannot read it. A user who wants that creates
the folder before: existing folders and files keep their modes.
"""
LAST_LINES = 20
LAST_LINE_BYTES_MAX = 2_000
_HELD_BYTES_MAX = 65_536  # a longer line is written to the console in parts
_READ_BYTES = 65_536
# The start of a further line: after a line's end that is not the end of the data.
_LINE_START = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?!\Z)")


class Console:
    """The agent's own stdout or stderr. If its reader has ended (`| head`), writes do nothing.

    `on_full` is called once if a write fails although the stream is not closed: a file on a full
    disk.
    """

    def __init__(self, fd: int, on_full: Callable[[OSError], None] = lambda error: None) -> None:
        self._fd = fd
        self._on_full = on_full
        self._gone = False

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left and not self._gone:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # a process that shares it made it non-blocking
                _wait_writable(self._fd)
            except OSError as error:
                self._gone = True
                # EPIPE, EIO of a closed terminal, EBADF: there is no reader any more.
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    self._on_full(error)


def make_log_dir(path: Path) -> None:
    """Make the folder and missing parent folders, for this user only."""
    if not path.parent.exists():
        make_log_dir(path.parent)
    path.mkdir(mode=LOG_FOLDER_MODE, exist_ok=True)


class LogFile:
    """A file for a worker's unchanged bytes. The first error ends it and is reported."""

    def __init__(self, path: Path, on_error: Callable[[Path, OSError], None]) -> None:
        self._path = path
        self._on_error = on_error
        self._fd = -1
        self._failed = False

    def open(self) -> None:
        with self._telling_errors():
            make_log_dir(self._path.parent)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, LOG_FILE_MODE)

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        with self._telling_errors():
            while left and self._fd >= 0:
                left = left[os.write(self._fd, left) :]

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with self._telling_errors():  # NFS reports a full disk here
                os.close(fd)

    @contextlib.contextmanager
    def _telling_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._failed:
                self._failed = True
                self._on_error(self._path, error)
            self.close()


class LastLines:
    """The last lines of a stream, bounded in number and bytes. Any thread may call snapshot()."""

    def __init__(self, count: int = LAST_LINES, bytes_max: int = LAST_LINE_BYTES_MAX) -> None:
        self._count = count
        self._bytes_max = bytes_max
        self._lines: deque[bytes] = deque(maxlen=count)
        self._current = b""
        self._lock = threading.Lock()

    def feed(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        with self._lock:
            # The first part ends the line that has begun. Only the last parts are kept.
            for part in (*whole[:1], *[part for part in whole[1:] if part.strip()][-self._count :]):
                self._extend(part)
                self._finish_line()
            self._extend(rest)

    def snapshot(self) -> tuple[str, ...]:
        with self._lock:
            lines = [*self._lines, self._shown(self._current)]
        shown = [line.decode(errors="replace").rstrip() for line in lines]
        return tuple(line for line in shown if line)[-self._count :]

    def _extend(self, part: bytes) -> None:
        joined = self._current + part
        # A progress bar returns to the start of its line: keep only its last state.
        joined = joined[joined.rfind(b"\r", 0, len(joined) - 1) + 1 :]
        # one more byte, to detect that there was more
        self._current = joined[: self._bytes_max + 1]

    def _finish_line(self) -> None:
        line = self._shown(self._current)
        if line.strip():
            self._lines.append(line)
        self._current = b""

    def _shown(self, line: bytes) -> bytes:
        return line if len(line) <= self._bytes_max else line[: self._bytes_max] + "…".encode()


class Stream:
    """The read end of one pipe of one worker, and the destinations of its bytes.

    A line is written to the console as a whole, so that workers' lines do not mix. One without an
    end is written in parts, so that its memory is bounded. A carriage return counts as an end
    there, because progress bars would show nothing otherwise. `on_end` is called with `fd` just
    before it is closed. `holds` False: nothing is held back, because a user may wait for a prompt.
    `tap` is called with all bytes.
    """

    def __init__(
        self,
        fd: int,
        console: Console | None,
        file: LogFile | None,
        prefix: bytes,
        last_lines: LastLines | None,
        on_end: Callable[[int], object],
        holds: bool = True,
        tap: Callable[[bytes], object] | None = None,
    ) -> None:
        self.fd = fd
        self.console = console
        self.file = file
        self.prefix = prefix
        self.last_lines = last_lines
        self.on_end = on_end
        self.holds = holds
        self.tap = tap
        self._held = bytearray()
        self._at_line_start = True
        self._open = True

    @property
    def open(self) -> bool:
        return self._open

    def read(self) -> int:
        """Pass on the bytes that can be read at once. Returns their number, 0 at the end."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if data:
            self._pass_on(data)
        else:
            self.close()
        return len(data)

    def flush(self) -> None:
        """Pass on an incomplete line."""
        self._print(len(self._held))

    def go_on(self, prefix: bytes, file: LogFile | None) -> None:
        """What is written from now on gets this prefix, and into this file."""
        self.flush()
        if self.file is not None:
            self.file.close()
        self.prefix, self.file = prefix, file
        if file is not None:
            file.open()

    def close(self) -> None:
        """Flush and close. Idempotent."""
        if not self._open:
            return
        self._open = False
        self.on_end(self.fd)
        os.close(self.fd)
        if self._held and self.prefix:  # the next line of another worker must begin on a new line
            self._held += b"\n"
        self.flush()
        if self.file is not None:
            self.file.close()

    def _pass_on(self, data: bytes) -> None:
        # Keep the lines for the report first, so that they are there even if the writes below hang.
        if self.last_lines is not None:
            self.last_lines.feed(data)
        if self.tap is not None:
            self.tap(data)
        if self.file is not None:
            self.file.write(data)
        if self.console is not None:
            self._held += data
            self._print(self._printable())

    def _printable(self) -> int:
        held = self._held
        if not self.holds:
            return len(held)
        # A return at the very end may be the first half of \r\n.
        end = max(held.rfind(b"\n"), held.rfind(b"\r", 0, max(len(held) - 1, 0))) + 1
        return end if end or len(held) < _HELD_BYTES_MAX else len(held)

    def _print(self, count: int) -> None:
        if count == 0 or self.console is None:
            return
        data = bytes(self._held[:count])
        del self._held[:count]
        self.console.write(self._prefixed(data))

    def _prefixed(self, data: bytes) -> bytes:
        if not self.prefix:
            return data
        head = self.prefix if self._at_line_start else b""
        self._at_line_start = data.endswith((b"\n", b"\r"))
        return head + _LINE_START.sub(lambda end: end[0] + self.prefix, data)


def _wait_writable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()
