"""A monotonic clock that leaves out the time in which the process was stopped (R8).

When a stopped process (SIGSTOP, a suspended machine, a held GIL, swapping) continues, every
deadline has passed, although no peer was late. This clock leaves out such a gap: all deadlines on
it move by the time for which the process was stopped.

That is not enough if the process runs slowly. Messages that nodes sent in time then wait in the
kernel, and a node needs several turns of the event loop to reconnect. So `InputFirst` decides when
deadlines may be judged: after the input that had arrived when they passed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

TICK_S: Final = 0.25
"""A user of the clock reads it at least this often."""
LATE_S: Final = 0.0625
"""If a tick is later than this, or a turn of the event loop longer, the loop runs slowly."""
STALL_S: Final = TICK_S + LATE_S
"""If two readings are further apart than this, the process was stopped in between."""
LONG_STALL_S: Final = 1.0
"""After a stall of this length a connection may have ended because no answer came."""
TURNS_MIN: Final = 3
"""The second turn may run before the loop reads input, because uvloop runs its timers first."""
TURNS_IF_SLOW: Final = 11
"""An accepted connection needs seven turns of the event loop to attach."""
PAUSE_IF_SLOW_S: Final = 0.01
"""Before each of these turns, so that nodes can answer in between."""
SETTLED_S: Final = 1.0
"""After this time, all input that arrived during a long stall has been read."""


class StallProofClock:
    """Seconds since some moment, without those in which the process was stopped.

    Read it at least every TICK_S. Not thread-safe: one event loop owns it. `stalled_s`: the time
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
            if gap_s > LONG_STALL_S:
                self._stall_ended_s = reading_s - self.stalled_s
        return reading_s - self.stalled_s

    def has_stalled_since(self, since_s: float) -> bool:
        """Whether the process was stopped since `since_s` on this clock, or in the last SETTLED_S.

        An event so soon after a stall may have been caused by it. Stalls below LONG_STALL_S do
        not count.
        """
        return self._stall_ended_s >= min(since_s, self.now_s() - SETTLED_S)


class InputFirst:
    """When the deadlines of an event loop may be judged: after earlier input was read.

    A user with deadlines calls `tick` at every tick, and again in the next turn of the event loop
    until there is an answer. That takes TURNS_MIN turns, or TURNS_IF_SLOW in a slow loop, and never
    more, because a loop that is always slow must judge deadlines, too.
    """

    def __init__(self) -> None:
        self._turns_left = 0
        self._is_slow = False
        self._due_s = 0.0

    @property
    def next_tick_s(self) -> float | None:
        """In how many seconds to tick again; None: at the next tick as planned."""
        if not self._turns_left:
            return None
        return PAUSE_IF_SLOW_S if self._is_slow else 0.0

    def tick(self, now_s: float, late_s: float) -> float | None:
        """The time up to which deadlines may be judged now; None: tick again in the next turn.

        `now_s` is on the clock of the deadlines. `late_s`: how late this tick is; in a following
        turn, how long the turn took.
        """
        if not self._turns_left:
            self._turns_left, self._is_slow, self._due_s = TURNS_MIN, False, now_s
        if late_s > LATE_S and not self._is_slow:
            self._turns_left, self._is_slow = TURNS_IF_SLOW, True
        self._turns_left -= 1
        return None if self._turns_left else self._due_s
