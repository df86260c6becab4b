"""The timers of a run: which ones are set, so that a stale one changes nothing.

A timer is an effect that comes back as an event. It cannot be withdrawn: a timer that was replaced
or cancelled still fires. So each has a serial number. Only the timer that was set last for its kind
and name counts, once. This file must not depend on what a timer is for.
"""

from __future__ import annotations

from rallypoint.core.effects import SetTimer, Timer, TimerKind


class Timers:
    """The serial numbers of the timers that are set: one for each kind and name."""

    def __init__(self) -> None:
        self._serial = 0
        self._set: dict[tuple[TimerKind, str], int] = {}

    def set(
        self, kind: TimerKind, delay_s: float, *, name: str = "", round_number: int = 0
    ) -> SetTimer:
        """Set a timer, in place of the one of this kind and name."""
        self._serial += 1
        self._set[kind, name] = self._serial
        return SetTimer(Timer(kind, self._serial, name, round_number), delay_s)

    def cancel(self, kind: TimerKind, name: str = "") -> None:
        """Make the timer of this kind and name stale. Idempotent."""
        self._set.pop((kind, name), None)

    def is_set(self, kind: TimerKind) -> bool:
        """Whether a timer of this kind, without a name, is set and has not been taken."""
        return (kind, "") in self._set

    def take(self, timer: Timer) -> bool:
        """Take a timer that has fired. False if it is stale."""
        key = timer.kind, timer.name
        # R8: only the timer that was set last counts.
        if self._set.get(key) != timer.serial:
            return False
        # R8: and it counts once.
        del self._set[key]
        return True
