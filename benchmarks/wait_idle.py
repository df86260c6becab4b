"""Waits until no other process runs, so that processes of one measurement do not slow the next.

It looks at the number of processes that are ready to run now. Load averages would not do: they
decay over minutes, so after hundreds of processes have ended they do not show the present.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Final

RUNNABLE_MAX: Final = 1
"""The machine counts as quiet while no more other processes than this are ready to run."""
QUIET_S: Final = 1.0
"""How long it must have been quiet."""
WAIT_MAX_S: Final = 30.0
_POLL_S: Final = 0.02
_LOADAVG: Final = Path("/proc/loadavg")


def wait(within_s: float = WAIT_MAX_S) -> int | None:
    """Wait until it has been quiet for QUIET_S, or for `within_s` seconds.

    Returns the largest number of other ready processes in the last QUIET_S. Returns None at once
    where that cannot be read, as on systems other than Linux.
    """
    seen: deque[tuple[float, int]] = deque()
    began_s = time.monotonic()
    while (others := runnable()) is not None:
        now_s = time.monotonic()
        seen.append((now_s, others))
        while seen[0][0] < now_s - QUIET_S:
            seen.popleft()
        most = max(count for _, count in seen)
        waited_s = now_s - began_s
        if waited_s >= within_s or (waited_s >= QUIET_S and most <= RUNNABLE_MAX):
            return most
        time.sleep(_POLL_S)
    return None


def runnable() -> int | None:
    """How many other processes and threads run or are ready to; None if that cannot be read."""
    try:
        fields = _LOADAVG.read_text(encoding="ascii").split()
    except OSError:
        return None
    return max(0, int(fields[3].partition("/")[0]) - 1)
