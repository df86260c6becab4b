"""Notices that this machine will be taken away: a file that appears, or a command that succeeds.

Clouds tell of a preemption in ways of their own, and a script of a few lines turns each into one of
these two. This file polls them. It must not decide what follows from a notice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec

EVERY_S: Final = 1.0
"""How often to look, in seconds."""
LIMIT_S: Final = 10.0
"""How long a look may take, in seconds: a file system may hang, or a command."""
TEXT_CHARACTERS_MAX: Final = 200


class NoticePlan(msgspec.Struct, frozen=True):
    """Where notices come from. `file`: it exists when there is one; its first line is the reason.

    `command`: it exits with code 0 when there is one; its first line of output is the reason.
    """

    file: Path | None = None
    command: tuple[str, ...] = ()


class Machine(Protocol):
    """What polling needs of launch.system.System."""

    async def read_text(self, path: Path) -> str:
        """What is in a file. May hang. Raises OSError."""

    async def run_command(self, argv: tuple[str, ...], limit_s: float) -> tuple[int, str]:
        """The exit code of a command, and its output. Raises OSError and TimeoutError."""


async def notice(plan: NoticePlan, machine: Machine, say: Callable[[str], None]) -> str:
    """Wait for a notice, and return its reason. `say`: called once for each kind of trouble."""
    said: set[str] = set()
    while True:
        if plan.file is not None:
            with contextlib.suppress(OSError, RuntimeError):  # no file, or no thread to look
                async with asyncio.timeout(LIMIT_S):
                    text = await machine.read_text(plan.file)
                return _reason(text, f"a notice in {str(plan.file)!r}")
        if plan.command:
            try:
                code, text = await machine.run_command(plan.command, LIMIT_S)
            except (OSError, RuntimeError) as error:  # TimeoutError is an OSError
                trouble = f"warning: --notice-command {plan.command[0]!r}: {error}"
                if trouble not in said:
                    said.add(trouble)
                    say(trouble)
            else:
                if code == 0:
                    return _reason(text, f"a notice of {plan.command[0]!r}")
        await asyncio.sleep(EVERY_S)


def _reason(text: str, what: str) -> str:
    first = next(iter(text.strip().splitlines()), "")[:TEXT_CHARACTERS_MAX]
    return f"{what}: {first}" if first else what
