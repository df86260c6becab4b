"""Who has gone: why, to tell a later start of it, and how often, so that who flaps waits longer.

A name that keeps coming and going would break a round each time that it is let in. So each stay
that was short doubles how long the next entry is delayed, within bounds; a long one forgives.
"""

from __future__ import annotations

from typing import Final, TypeVar

from rallypoint.core.values import Change

T = TypeVar("T")

DOUBLINGS_MAX: Final = 6
"""A name that keeps coming and going waits at most 2**6 times the scale-up delay."""
STEADY_S: Final = 60.0
"""Whoever stays this long is no longer held to come and go."""
REMEMBERED_MAX: Final = 1_024
"""How many names that have gone are remembered."""


class DepartureHistory:
    """The latest names that have gone, oldest first."""

    def __init__(self) -> None:
        self._changes: dict[str, Change] = {}
        self._short_stays: dict[str, int] = {}

    def remember(self, name: str, change: Change, *, stayed_s: float, is_done: bool) -> None:
        """A member has gone. One whose workers have finished is not held to come and go."""
        _put_last(self._changes, name, change)
        if stayed_s >= STEADY_S:
            self._short_stays.pop(name, None)
        elif not is_done:
            _put_last(self._short_stays, name, self._short_stays.get(name, 0) + 1)

    def change(self, name: str) -> Change | None:
        """Why the name went when it last did, if that is remembered."""
        return self._changes.get(name)

    def delay_s(self, name: str, base_s: float, attached_for_s: float) -> float:
        """How long the name's entry is delayed: `base_s`, doubled for each short stay.

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
