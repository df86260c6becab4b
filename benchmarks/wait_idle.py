"""Waits until nothing else runs, so that no row pays for what the one before it has left.

By how many processes want to run now. Load averages decay for minutes: after hundreds of processes
have ended they say nothing about the present.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Final

RUNNABLE_MAX: Final = 1
"""So many others may want to run, and it counts as quiet."""
QUIET_S: Final = 1.0
"""How long it must have been quiet."""
WAIT_MAX_S: Final = 30.0
_POLL_S: Final = 0.02
_LOADAVG: Final = Path("/proc/loadavg")


def wait(within_s: float = WAIT_MAX_S) -> int | None:
    """Wait until it has been quiet for QUIET_S, or `within_s` seconds are over.

    Returns the most other processes that wanted to run at any look of the last QUIET_S. None, and
    at once, where that cannot be read: it takes Linux.
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
    """How many processes and threads run or want to, this one left out; None if nobody tells."""
    try:
        fields = _LOADAVG.read_text(encoding="ascii").split()
    except OSError:
        return None
    return max(0, int(fields[3].partition("/")[0]) - 1)
