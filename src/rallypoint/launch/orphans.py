"""The first process of a container: it inherits every process whose parent has ended.

Nobody waits for such orphans but this process, so that they would stay as zombies, and use up the
container's process numbers. A worker's own remains end with it (worker_processes.py). This file is
about processes that have left the worker's session. It must not touch a process that this one has
started itself: whoever started it needs its exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection
from typing import Final

from rallypoint.launch import guard_process
from rallypoint.threads import call_from_loop

LOOKS_S: Final = 1.0
"""How many seconds are between two looks."""


def is_first() -> bool:
    """Whether this process inherits orphans."""
    return os.getpid() == 1


class OrphanReaper:
    """Waits for orphans that have ended. `own`: the children that this process has started."""

    def __init__(self, own: Callable[[], Collection[int]]) -> None:
        self._own = own
        self._seen: set[tuple[int, int]] = set()

    async def run(self) -> None:
        """Look again and again, in threads, until it is cancelled."""
        while True:
            await asyncio.sleep(LOOKS_S)
            await call_from_loop(self.reap)

    def reap(self) -> int:
        """Wait for the zombies that were there at the last look already. Returns how many.

        A child that this process has just started may end before it is known as its own. Whoever
        started it waits for it by the next look, or `own` names it then.
        """
        zombies = {
            (process.pid, process.start_time)
            for process in guard_process.read_all_processes()
            if process.parent == os.getpid() and not process.alive
        }
        own = self._own()
        orphans = [pid for pid, start in zombies & self._seen if pid not in own]
        self._seen = zombies
        for pid in orphans:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return len(orphans)
