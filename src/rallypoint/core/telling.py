"""When to log why something waits: when the reason changes, and rarely while it stays. Pure."""

from __future__ import annotations

from typing import Final

LEAST_S: Final = 2.0
"""The shortest time between two lines."""
AGAIN_S: Final = 30.0
"""The shortest time until a reason is repeated, also if other reasons came between."""
KEPT_MAX: Final = 16
FIRST_S: Final = 2.0
"""How long a wait lasts before a program is told of it."""
LONGEST_S: Final = 60.0
"""The longest interval between two reports to a program."""


class Lines:
    """The lines of one wait. A reason is a value that stays equal while only time passes."""

    def __init__(self) -> None:
        self._said_s: dict[object, float] = {}
        """When each reason was last logged, the latest at the end."""
        self._last_s = float("-inf")

    def is_due(self, reason: object, now_s: float) -> bool:
        """Whether to log this reason now. If True, it counts as logged."""
        before_s = self._said_s.get(reason, float("-inf"))
        if now_s - self._last_s < LEAST_S or now_s - before_s < AGAIN_S:
            return False
        self._said_s.pop(reason, None)
        self._said_s[reason] = self._last_s = now_s
        if len(self._said_s) > KEPT_MAX:
            del self._said_s[next(iter(self._said_s))]
        return True

    def forget(self) -> None:
        """The wait is over: every reason of the next one is new."""
        self._said_s.clear()


class Intervals:
    """When a program is told that one wait goes on: after FIRST_S, and at growing intervals."""

    def __init__(self) -> None:
        self._due_s = self._interval_s = FIRST_S

    def is_due(self, waited_s: float) -> bool:
        """Whether to tell it now, after so many seconds. If True, it counts as told."""
        if waited_s < self._due_s:
            return False
        self._interval_s = min(2 * self._interval_s, LONGEST_S)
        self._due_s = waited_s + self._interval_s
        return True
