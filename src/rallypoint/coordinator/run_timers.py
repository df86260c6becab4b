"""The timers of one run that the core has set, on the coordinator's clock.

It sets and cancels timers; the core decides what a timer means. `store_service` has the timers of
the round's store.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from rallypoint.coordinator.timers import ScheduledCall
from rallypoint.core.effects import SetTimer, Timer, TimerKind

FEW: Final = 64
"""Below this number of timers, those of former members are not removed."""
_OF_A_MEMBER: Final = (TimerKind.GRACE, TimerKind.LOST)


class RunTimers:
    """One run's timers. Only the newest timer of each kind and name counts.

    An older one is cancelled at once, because with some settings it would stay for a year.
    `is_member` returns whether the run has a member of that name.
    """

    def __init__(
        self,
        call_at: Callable[[float, Callable[[], None]], ScheduledCall],
        fired: Callable[[Timer], None],
        is_member: Callable[[str], bool],
    ) -> None:
        self._call_at = call_at
        self._fired = fired
        self._is_member = is_member
        self._timers: dict[tuple[TimerKind, str], ScheduledCall] = {}
        self._looked_at = FEW
        self.is_closed = False

    def set(self, effect: SetTimer, now_s: float) -> None:
        """Set a timer, in place of the one before it."""
        if self.is_closed:
            return
        what = effect.timer.kind, effect.timer.name
        before = self._timers.get(what)
        if before is not None:
            before.cancel()
        fire = partial(self._fire, what, effect.timer)
        self._timers[what] = self._call_at(now_s + effect.delay_s, fire)
        if len(self._timers) > self._looked_at:
            self._drop_those_of_former_members()

    def close(self) -> None:
        """The run was forgotten here: cancel all timers, and set no more."""
        self.is_closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        # they refer to the run
        self._fired, self._is_member = lambda timer: None, lambda name: False

    def _fire(self, what: tuple[TimerKind, str], timer: Timer) -> None:
        del self._timers[what]
        self._fired(timer)

    def _drop_those_of_former_members(self) -> None:
        for what in list(self._timers):
            kind, name = what
            if kind in _OF_A_MEMBER and not self._is_member(name):
                self._timers.pop(what).cancel()
        self._looked_at = max(FEW, 2 * len(self._timers))  # keeps this O(1) for each timer
