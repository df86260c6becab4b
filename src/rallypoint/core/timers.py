"""The timers of a run: which ones are set, so that a stale one changes nothing.

A timer is an effect that comes back as an event. It cannot be taken back: one that was replaced or
cancelled fires all the same. So each has a serial number, and only the one that was set last for
its kind and name counts, once. What a timer means is for `membership` and its parts, not for this
file.
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
        """The timer of this kind and name means nothing from now on. Idempotent."""
        self._set.pop((kind, name), None)

    def is_set(self, kind: TimerKind, name: str = "") -> bool:
        """Whether a timer of this kind and name is set, and has not been taken."""
        return (kind, name) in self._set

    def take(self, timer: Timer) -> bool:
        """A timer has fired. False if it is stale; else it counts now, and is not set any more."""
        key = timer.kind, timer.name
        if self._set.get(key) != timer.serial:
            return False
        del self._set[key]
        return True
