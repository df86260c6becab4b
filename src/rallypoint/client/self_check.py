"""Whether this machine is fit for a round, by a program's own check: `rallypoint.join(check=...)`.

The agent of `rallypoint run --check` has a check of its own (launch/check_process.py), which is
also ended if the agent dies. What must not be here: what follows from the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Callable
from typing import Final

import msgspec

from rallypoint.core.printable import escaped, shortened
from rallypoint.threads import call_from_loop

Check = Callable[[], str | None] | str
"""A function that returns why the machine is unfit, "" or None if it is fit; or a shell's line."""
REASON_MAX: Final = 200
"""The most characters of a reason."""
KEPT_BYTES: Final = 8_192
"""How much of the end of a command's output is kept."""
REAPED_S: Final = 1.0
"""How many seconds a command that was killed may take to be reaped."""


class SelfCheck(msgspec.Struct, frozen=True):
    """A program's check, and how long it may take, in seconds."""

    check: Check
    limit_s: float

    async def why_unfit(self) -> str:
        """Run it: see `why_unfit`."""
        return await why_unfit(self.check, self.limit_s)


async def why_unfit(check: Check, limit_s: float) -> str:
    """Run the check. Returns why the machine is unfit, in one line; "" if it is fit.

    A function is called in a thread of its own. An exception is a reason, and so is a check that
    has not ended within `limit_s` seconds: a command is ended then, and a function is left alone.
    """
    try:
        if isinstance(check, str):
            return await _by_command(check, limit_s)
        called: asyncio.Future[str | None] = call_from_loop(check)
        async with asyncio.timeout(limit_s):
            return _line(await called or "")
    except TimeoutError:
        return f"it has not ended within {limit_s:g} s"
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the program's own check
        return _line(f"{type(error).__name__}: {error}")


async def _by_command(command: str, limit_s: float) -> str:
    # A file, because what the command leaves behind would hold a pipe.
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(limit_s):
                await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # One in uninterruptible sleep, because of a broken device, outlives that.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REAPED_S):
                    await process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - KEPT_BYTES))
        said = output.read().decode(errors="replace")
    if process.returncode == 0:
        return ""
    lines = [line for line in said.splitlines() if line.strip()]
    return _line(lines[-1]) if lines else f"it exited with code {process.returncode}"


def _line(text: str) -> str:
    return shortened(escaped(" ".join(str(text).split())), REASON_MAX)
