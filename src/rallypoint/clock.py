"""A monotonic clock that stands still while the process did (R8).

A process that was stopped (SIGSTOP, a suspended machine, a held GIL, swapping) finds every
deadline passed when it goes on, though nobody else did anything wrong. This clock leaves such a
gap out: all deadlines that are kept on it move by the time for which the process slept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

STALL_S: Final = 1.0
"""Two readings further apart than this were not taken by a process that was running."""
SETTLED_S: Final = 1.0
"""So long after a stall everything has been taken that came in during it."""
TICK_S: Final = 0.25
"""Whoever keeps deadlines on the clock reads it at least this often."""


class StallProofClock:
    """Seconds since some moment, without those that the process slept through.

    Read it at least every TICK_S. Not thread-safe: one event loop owns it. `stalled_s` is the time
    left out so far, in seconds.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._last_s = source()
        self.stalled_s = 0.0
        self._stall_ended_s = -math.inf

    def now_s(self) -> float:
        """The time, in seconds. Never goes back."""
        reading_s = self._source()
        gap_s = reading_s - self._last_s
        self._last_s = reading_s
        if gap_s > STALL_S:
            self.stalled_s += gap_s - TICK_S
            self._stall_ended_s = reading_s - self.stalled_s
        return reading_s - self.stalled_s

    def has_stalled_since(self, since_s: float) -> bool:
        """Whether the process slept after `since_s` on this clock, or within the last SETTLED_S.

        What happens so soon after a stall may have been under way during it.
        """
        return self._stall_ended_s >= min(since_s, self.now_s() - SETTLED_S)
