"""When to let in the newcomers that wait beside an active round.

Newcomers are collected for `scale_up_delay_s`, so that nodes that start together end the round only
once. A name that joins and leaves often waits longer (`flapping`). This file only keeps the time.
`membership` ends the round, and `formation` chooses the members of the next one.
"""

from __future__ import annotations

import math

from rallypoint.core.effects import Effect, TimerKind
from rallypoint.core.roster import Member, Roster
from rallypoint.core.timers import Timers


class ScaleUp:
    """The delay of the newcomers beside one round. `reset` when a round begins or ends."""

    def __init__(self, roster: Roster, timers: Timers) -> None:
        self._roster = roster
        self._timers = timers
        self._earliest_s = math.inf
        """When the first of the newcomers may be let in."""
        self._timer_at_s = math.inf
        self.is_due = False

    def reset(self) -> None:
        """Forget the newcomers. Those that still wait are added again."""
        if self._timer_at_s < math.inf:
            self._timers.cancel(TimerKind.SCALE_UP)
        self._earliest_s = self._timer_at_s = math.inf
        self.is_due = False

    def newcomer(self, member: Member) -> None:
        """The member is ready, and may be let in from `eligible_s` on."""
        self._earliest_s = min(self._earliest_s, member.eligible_s)

    def timer_fired(self) -> None:
        """A SCALE_UP timer fired that was not stale."""
        self.is_due = True

    def take(self, now_s: float) -> list[Member]:
        """All newcomers, in order of arrival, if the delay of the first is over; else none.

        Call it only while a newcomer waits.
        """
        if not self.is_due:
            return []
        self.is_due = False
        newcomers = self._roster.newcomers()
        self._earliest_s = min(member.eligible_s for member in newcomers)
        if self._earliest_s <= max(now_s, self._timer_at_s):
            return newcomers
        self._timer_at_s = math.inf
        return []

    def wait(self, round_number: int, now_s: float) -> list[Effect]:
        """Set the timer for the first of the newcomers, unless an earlier one is set."""
        if self._earliest_s >= self._timer_at_s:
            return []
        self._timer_at_s = self._earliest_s
        delay_s = max(0.0, self._timer_at_s - now_s)
        return [self._timers.set(TimerKind.SCALE_UP, delay_s, round_number=round_number)]
