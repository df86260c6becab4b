"""Runs the commands of `--check` (is this node fit for a round?) and of `--notice-command`.

A command runs in a session of its own, which is ended as a whole when the command has ended, at the
time limit, and when the wait for it is cancelled. Its output takes a bounded memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Protocol

from rallypoint.core.printable import escaped, shortened
from rallypoint.launch import guard_process
from rallypoint.launch.worker_processes import two_pipes
from rallypoint.threads import call_from_loop

REASON_MAX: Final = 200
"""The most characters of the last line, which is the reason for others."""
GATE: Final = 'read -r go && exec /bin/sh -c "$1" </dev/null'
"""Begins the command when its group is known to those that end it."""
KEPT_BYTES: Final = 8_192
"""How much of the output is kept: its end, or its start."""
REAPED_S: Final = 1.0
"""How many seconds a command that was killed may take to be reaped."""
READ_BYTES: Final = 65_536
PIECES_MAX: Final = 16
"""How many pieces are read in one turn of the loop: a pipe has at most so many of them."""


class Groups(Protocol):
    """Ends process groups if the agent dies: see guard.Guard."""

    def add(self, pgid: int) -> None: ...

    def remove(self, pgid: int) -> None: ...


async def run_check(
    command: str, limit_s: float, environment: Mapping[str, str], groups: Groups
) -> str:
    """Run the command. Returns why the node is unfit: its last line; "" if it ended with 0.

    A command that cannot be started, or has not ended after `limit_s` seconds, has failed. So it
    is repeated, also if this process has no files or threads left for it now.
    """
    try:
        return await _run(command, limit_s, environment, groups)
    except (OSError, RuntimeError) as error:  # threading raises RuntimeError
        return f"it cannot be started: {error}"


async def _run(command: str, limit_s: float, environment: Mapping[str, str], groups: Groups) -> str:
    with contextlib.ExitStack() as on_error:
        (output, written), (gate, opener) = two_pipes(on_error)
        on_error.pop_all()
    kept = _Kept(output)
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", GATE, "sh", command),
                stdin=gate,
                stdout=written,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        finally:
            os.close(written)
            os.close(gate)
        is_late = False
        async with _session(process.pid, groups):
            # If this process ends before, the read fails, and the command never begins.
            with contextlib.suppress(BrokenPipeError):
                os.write(opener, b"\n")
            try:
                async with asyncio.timeout(limit_s):
                    await process.wait()
            except TimeoutError:
                is_late = True
        # A process in uninterruptible sleep, because of a broken device, outlives its SIGKILL.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REAPED_S):
                await process.wait()
        kept.read()
    finally:
        os.close(opener)
        kept.close()
    said = _last_line(kept.bytes)
    if is_late:
        return f"it has not ended within {limit_s:g} s" + (f": {said}" if said else "")
    if process.returncode == 0:
        return ""
    return said or _how(process.returncode)


async def run_notice(
    argv: Sequence[str], limit_s: float, environment: Mapping[str, str], groups: Groups
) -> tuple[int, str]:
    """Run the command. Returns its exit code (-N: signal N), and the start of its output.

    Raises OSError if it cannot be started, and TimeoutError if it has not ended after `limit_s`
    seconds.
    """
    output, written = os.pipe()
    kept = _Kept(output, keeps_start=True)
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=written,
                stderr=asyncio.subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )
        finally:
            os.close(written)
        async with _session(process.pid, groups):
            try:
                async with asyncio.timeout(limit_s):
                    code = await process.wait()
            except TimeoutError:
                raise TimeoutError(f"no answer within {limit_s:g} s") from None
        kept.read()
    finally:
        kept.close()
    return code, bytes(kept.bytes).decode(errors="replace")


@contextlib.asynccontextmanager
async def _session(leader: int, groups: Groups) -> AsyncIterator[None]:
    """The guard knows the session of this process meanwhile. At the end, all of it is ended."""
    groups.add(leader)
    found = guard_process.read_process(leader)
    started = {leader: found.start_time if found is not None else 0}
    try:
        yield
    finally:
        try:
            await call_from_loop(functools.partial(_end_session, started))
        finally:
            groups.remove(leader)


class _Kept:
    """Reads a pipe in the loop, and keeps the end or the start of what came.

    It does not wait for the end of the pipe, which a process that has left the session may hold.
    """

    def __init__(self, fd: int, *, keeps_start: bool = False) -> None:
        self.bytes = bytearray()
        self._keeps_start = keeps_start
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self.read)

    def read(self) -> None:
        """Take what is there."""
        for _ in range(PIECES_MAX):
            try:
                piece = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                return
            if not piece:
                self._loop.remove_reader(self._fd)
                return
            self.bytes += piece
            if self._keeps_start:
                del self.bytes[KEPT_BYTES:]
            else:
                del self.bytes[:-KEPT_BYTES]

    def close(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


def _end_session(started: dict[int, int]) -> None:
    """A command may have made groups of its own in its session, as `timeout` does."""
    guard_process.kill_groups(started, guard_process.KILL_WITHIN_S)


def _last_line(kept: bytes | bytearray) -> str:
    lines = (line.strip() for line in bytes(kept).decode(errors="replace").splitlines())
    last = next((line for line in reversed(list(lines)) if line), "")
    return shortened(escaped(last), REASON_MAX)


def _how(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"it was killed by signal {-returncode}"
    return f"it exited with code {returncode}"
