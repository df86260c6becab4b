"""The workers' output: whole lines to the console, all bytes to files, last lines to reports.

One thread reads all workers' pipes and makes all writes. So a hanging console or file system blocks
this thread and, through full pipes, the workers' prints, but never the agent's loop. This file must
not interpret lines; failures.py does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import re
import selectors
import struct
import tempfile
import termios
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rallypoint.errors import LogDirectoryError
from rallypoint.launch.console_rule import STDERR, STDOUT
from rallypoint.launch.output_streams import (
    LAST_LINES,
    Console,
    LastLines,
    LogFile,
    Stream,
    make_log_dir,
)
from rallypoint.threads import settle

_COMMANDS_MAX = 10_000  # the agent's own lines while the console hangs; more are dropped
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def check_log_dir(path: Path) -> None:
    """Make the directory and try to write a file in it. May hang with its file system.

    Raises LogDirectoryError.
    """
    try:
        make_log_dir(path)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".rallypoint-check-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        problem = error.strerror or str(error)
        raise LogDirectoryError(str(path), problem, hint=_hint_for(error)) from error


def _hint_for(error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return "give this user the right to write there, or name another --log-dir"
        case errno.EROFS:
            return "it is mounted read-only: name another --log-dir"
        case errno.ENOSPC:
            return "the file system is full: free some space, or name another --log-dir"
        case errno.EDQUOT:
            return "this user's quota is spent: free some space, or name another --log-dir"
        case errno.ENOTDIR | errno.EEXIST:
            return "a part of the path is not a directory: name another --log-dir"
    return "check --log-dir on this node"


def round_log_dir(log_dir: Path, run_id: str, number: int) -> Path:
    """The folder of a round's files. A run_id cannot lead out of `log_dir`."""
    return run_log_dir(log_dir, run_id) / f"round-{number}"


def run_log_dir(log_dir: Path, run_id: str) -> Path:
    """The folder of a run's files."""
    name = _UNSAFE.sub("_", run_id)
    return log_dir / (name if name.strip(".") else "_" * max(len(name), 1))


class LogPump:
    """Reads the workers' output and passes it on. Any thread may call its methods.

    `prefix` returns the prefix of each line of a worker on the console, from its local rank and its
    rank (files get the bytes unchanged). `log_dir` None: no files. `shows` returns whether the
    console shows a stream (STDOUT, STDERR) of a local rank; say() is always shown. `lines_kept`:
    how many last lines of each worker are kept. `prompting`: a local rank that may prompt a user,
    so its output is not held back until a line ends. `node`: the name of the agent's own file.
    `tap` is called from the pump's thread with the local rank, the stream and all bytes.
    """

    def __init__(
        self,
        *,
        run_id: str = "",
        log_dir: Path | None = None,
        prefix: Callable[[int, int], str] | None = None,
        shows: Callable[[int, int], bool] = lambda local_rank, stream: True,
        prompting: int | None = None,
        lines_kept: int = LAST_LINES,
        node: str = "",
        tap: Callable[[int, int, bytes], object] | None = None,
        stdout_fd: int = 1,
        stderr_fd: int = 2,
    ) -> None:
        self._run_id = run_id
        self._log_dir = log_dir
        self._prefix = prefix
        self._shows = shows
        self._prompting = prompting
        self._lines_kept = lines_kept
        self._tap = tap
        self._stdout = Console(stdout_fd, self._stdout_full)
        self._stderr = Console(stderr_fd)
        self._round_dir: Path | None = None
        self._own_file: LogFile | None = None
        if log_dir is not None and node:
            path = run_log_dir(log_dir, run_id) / f"agent-{_UNSAFE.sub('_', node)}.log"
            self._own_file = LogFile(path, self._file_failed)
        self._is_own_open = False
        self._kept: dict[int, LastLines] = {}
        self._streams: dict[int, list[Stream]] = {}  # of this round, by local rank
        self._file_problem_told = False
        self._commands: deque[Callable[[], None]] = deque()
        self._command_lock = threading.Lock()
        self._closing = self._ended = False
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        threading.Thread(target=self._run, name="rallypoint-logs", daemon=True).start()

    def begin_round(self, number: int, kept: Mapping[int, int] | None = None) -> None:
        """Pipes that are attached from now on belong to this round. Drop earlier last lines.

        `kept`: the local ranks of workers that go on in this round, and their new ranks. Their
        pipes belong to it, too.
        """
        ranks = dict(kept or {})
        self._kept = last = {each: LastLines(self._lines_kept) for each in ranks}
        if self._log_dir is not None:
            self._round_dir = round_log_dir(self._log_dir, self._run_id, number)
        directory = self._round_dir
        self._command(lambda: self._go_on(ranks, dict(last), directory))

    def attach(self, local_rank: int, rank: int, stdout_fd: int, stderr_fd: int) -> None:
        """Take over the read ends of a worker's pipes."""
        self._kept[local_rank] = kept = LastLines(self._lines_kept)
        prefix = self._prefix_of(local_rank, rank)
        directory = self._round_dir

        def stream(
            fd: int, number: int, console: Console, suffix: str, last: LastLines | None
        ) -> Stream:
            file = self._file(directory, rank, suffix)
            os.set_blocking(fd, False)
            printed = console if self._shows(local_rank, number) else None
            holds = local_rank != self._prompting
            tap = partial(self._tap, local_rank, number) if self._tap is not None else None
            return Stream(fd, printed, file, prefix, last, self._selector.unregister, holds, tap)

        out = stream(stdout_fd, STDOUT, self._stdout, "out", None)
        err = stream(stderr_fd, STDERR, self._stderr, "err", kept)
        if not self._command(lambda: self._begin(local_rank, [out, err])):
            os.close(stdout_fd)
            os.close(stderr_fd)

    def _prefix_of(self, local_rank: int, rank: int) -> bytes:
        text = self._prefix(local_rank, rank) if self._prefix is not None else ""
        return text.encode(errors="replace")

    def _file(self, directory: Path | None, rank: int, suffix: str) -> LogFile | None:
        if directory is None:
            return None
        return LogFile(directory / f"rank-{rank}.{suffix}", self._file_failed)

    def last_lines(self, local_rank: int) -> tuple[str, ...]:
        """The last lines that a worker of this round wrote to stderr, the oldest first.

        Never waits. The lines are complete if drain() has returned True after the worker's exit.
        """
        kept = self._kept.get(local_rank)
        return kept.snapshot() if kept is not None else ()

    def say(self, text: str) -> None:
        """Write the agent's own line to stderr, in order with the workers', without waiting.

        It is dropped if 10,000 other lines wait for a hanging console.
        """
        if len(self._commands) < _COMMANDS_MAX:
            data = (text.rstrip("\n") + "\n").encode(errors="replace")
            self._command(lambda: self._stderr.write(data))

    def keep(self, text: str) -> None:
        """Write the agent's own line to its file, without waiting; without a folder, do nothing.

        It is dropped as by `say`.
        """
        if self._own_file is not None and len(self._commands) < _COMMANDS_MAX:
            data = (text.rstrip("\n") + "\n").encode(errors="replace")
            self._command(lambda: self._keep(data))

    async def drain(self, timeout_s: float, local_rank: int | None = None) -> bool:
        """Wait until the output of workers (or one) from before this call was passed on.

        It does not wait for a descendant that keeps a pipe open, or for its later output. False if
        `timeout_s` passed before: the console or the file system hangs.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if self._command(lambda: settle(done, lambda: self._drain(local_rank))):
            await asyncio.wait([done], timeout=timeout_s)
            return done.done()
        return True

    async def close(self, timeout_s: float) -> bool:
        """Drain, and end the thread. False if `timeout_s` passed before; then it ends later.

        Idempotent. Workers that write later get EPIPE.
        """
        drained = await self.drain(timeout_s)
        self._command(self._close)
        return drained

    def _command(self, command: Callable[[], None]) -> bool:
        """Send a command to the thread. False if the thread has ended."""
        with self._command_lock:
            if self._ended:
                return False
            self._commands.append(command)
            with contextlib.suppress(BlockingIOError):  # full: the thread is awake
                os.write(self._wake_write, b"x")
            return True

    # -- in the pump's thread --------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._run_commands()
                elif key.data.open:  # a drain in this turn may have read the end of this pipe
                    key.data.read()
        self._end()

    def _keep(self, data: bytes) -> None:
        assert self._own_file is not None
        if not self._is_own_open:
            self._is_own_open = True
            self._own_file.open()
        self._own_file.write(data)

    def _close(self) -> None:
        self._closing = True

    def _run_commands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        while self._commands:
            self._commands.popleft()()

    def _begin(self, local_rank: int, streams: list[Stream]) -> None:
        self._streams[local_rank] = streams
        for stream in streams:
            if stream.file is not None:
                stream.file.open()
            self._selector.register(stream.fd, selectors.EVENT_READ, stream)

    def _go_on(
        self, ranks: Mapping[int, int], last: Mapping[int, LastLines], directory: Path | None
    ) -> None:
        """The workers of these local ranks go on in the next round, with these ranks."""
        self._streams = {each: self._streams[each] for each in ranks if each in self._streams}
        for local_rank, (out, err) in self._streams.items():
            prefix = self._prefix_of(local_rank, ranks[local_rank])
            for stream, suffix in ((out, "out"), (err, "err")):
                if stream.open:
                    read_what_is_there(stream)  # it is of the round before
                    stream.go_on(prefix, self._file(directory, ranks[local_rank], suffix))
            err.last_lines = last[local_rank]

    def _drain(self, local_rank: int | None) -> None:
        drained = self._streams.values() if local_rank is None else [self._of(local_rank)]
        for stream in itertools.chain.from_iterable(drained):
            if stream.open:
                read_what_is_there(stream)
                stream.flush()

    def _of(self, local_rank: int) -> list[Stream]:
        return self._streams.get(local_rank, [])

    def _stdout_full(self, error: OSError) -> None:
        text = f"rallypoint: the workers' output cannot be written: {error.strerror}; "
        self._stderr.write(f"{text}the workers continue, their output is lost\n".encode())

    def _file_failed(self, path: Path, error: OSError) -> None:
        if self._file_problem_told:
            return
        self._file_problem_told = True
        text = f"rallypoint: cannot write {str(path)!r}: {error.strerror}; "
        self._stderr.write(
            f"{text}the workers continue, but this log file is incomplete\n".encode()
        )

    def _end(self) -> None:
        with self._command_lock:
            self._ended = True
        self._run_commands()
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                key.data.close()
        if self._own_file is not None:
            self._own_file.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


def read_what_is_there(stream: Stream) -> None:
    """Read the output that is there now, so that an endless writer does not block the pump."""
    (left,) = struct.unpack("i", fcntl.ioctl(stream.fd, termios.FIONREAD, b"\0" * 4))
    while stream.open:
        count = stream.read()
        left -= count
        if count == 0 or left <= 0:
            return
