"""Which names left, why, and how often. A name that joins and leaves often has to wait longer.

Such a name would end a round each time that it is let in. So each short stay doubles the delay
before the name is let in again, up to a bound. A long stay resets the delay. The next start of the
node receives the reason of its last departure.
"""

from __future__ import annotations

from typing import Final, TypeVar

from rallypoint.core.values import Change

T = TypeVar("T")

DOUBLINGS_MAX: Final = 6
"""The delay is at most 2**6 times the scale-up delay."""
STEADY_S: Final = 60.0
"""A stay of this length is long."""
REMEMBERED_MAX: Final = 1_024
"""How many names are remembered."""


class DepartureHistory:
    """The names that left last, oldest first."""

    def __init__(self) -> None:
        self._changes: dict[str, Change] = {}
        self._short_stays: dict[str, int] = {}

    def remember(self, name: str, change: Change, *, stayed_s: float, is_done: bool) -> None:
        """A member left. The stay of a member that is done (`is_done`) does not count as short."""
        _put_last(self._changes, name, change)
        if stayed_s >= STEADY_S:
            self._short_stays.pop(name, None)
        elif not is_done:
            _put_last(self._short_stays, name, self._short_stays.get(name, 0) + 1)

    def change(self, name: str) -> Change | None:
        """Why a member of this name last left; None if that is not remembered."""
        return self._changes.get(name)

    def delay_s(self, name: str, base_s: float, attached_for_s: float) -> float:
        """How long to delay the name: `base_s`, doubled for each short stay.

        `attached_for_s`: how long it has been attached this time.
        """
        if attached_for_s >= STEADY_S:
            return base_s
        stays = self._short_stays.get(name, 0)
        return base_s * float(2 ** min(stays, DOUBLINGS_MAX)) if stays else base_s


def _put_last(memory: dict[str, T], name: str, value: T) -> None:
    memory.pop(name, None)
    memory[name] = value
    while len(memory) > REMEMBERED_MAX:
        del memory[next(iter(memory))]
