"""For what a round was waited: which nodes were not ready, and for how long.

It is told when nodes are ready, and keeps the longest waits between them. Values only: it decides
nothing, and reads no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from rallypoint.core.values import NAMES_SHOWN_MAX

WAIT_MIN_S: Final = 1.0
"""A shorter wait is not kept."""
WAITS_MAX: Final = 4
"""How many waits of one gathering are kept: the longest ones."""


class Wait(msgspec.Struct):
    """For `seconds` no further node was ready. `names` and `count`: those that were ready later.

    `is_first`: no node at all was ready before.
    """

    seconds: float
    is_first: bool
    names: list[str]
    count: int = 0

    @property
    def node(self) -> str:
        """The node, if it is one."""
        return self.names[0] if self.count == 1 else ""

    @property
    def detail(self) -> str:
        """Why these are named, in words."""
        if self.is_first:
            return "no node was ready before"
        return "it was ready last" if self.count == 1 else "they were ready last"


class Waits:
    """The waits of one gathering. Times in seconds, by one clock that never goes back."""

    def __init__(self, now_s: float) -> None:
        self.began_s = now_s
        """When the gathering began."""
        self.ready_s = now_s
        """When the last node was ready, or the gathering began."""
        self._since_s = now_s
        """Since when nodes are waited for."""
        self._has_ready = False
        self._kept: list[Wait] = []

    def begin(self, now_s: float, *, has_ready: bool = False) -> None:
        """A gathering begins. `has_ready`: some nodes are ready, such as those on standby."""
        self.began_s = self.ready_s = now_s
        self._has_ready = has_ready
        self.go_on(now_s)

    def go_on(self, now_s: float) -> None:
        """What was waited for until now was told. The nodes that are ready remain ready."""
        self._kept.clear()
        self._since_s = now_s

    def not_before(self, at_s: float) -> None:
        """Until then the round waits for something else than nodes."""
        self._since_s = max(self._since_s, at_s)

    def ready(self, names: Sequence[str], count: int, at_s: float) -> None:
        """So many more nodes are ready, of which the first ones are named. O(1)."""
        waited_s, kept = at_s - self._since_s, self._kept
        if waited_s >= WAIT_MIN_S:
            if len(kept) == WAITS_MAX:
                kept.remove(min(kept, key=lambda each: each.seconds))
            kept.append(Wait(waited_s, not self._has_ready, []))
        for each in kept:
            # A node that is ready now was missing during each of these waits.
            each.names += names[: NAMES_SHOWN_MAX - len(each.names)]
            each.count += count
        self.ready_s = max(self.ready_s, at_s)
        self.not_before(at_s)
        self._has_ready = True

    def idle_s(self, now_s: float) -> float:
        """How long the nodes that are ready have waited since the last of them was ready."""
        return max(0.0, now_s - self._since_s)

    def told(self) -> tuple[Wait, ...]:
        """The waits so far, oldest first."""
        return tuple(self._kept)
