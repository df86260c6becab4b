"""When to say why something waits: once the reason changes, and rarely while it stays. Pure."""

from __future__ import annotations

from typing import Final

LEAST_S: Final = 2.0
"""The least time between two lines."""
AGAIN_S: Final = 30.0
"""How soon a reason is said again. Two reasons that take turns are each said as rarely."""
KEPT_MAX: Final = 16


class Lines:
    """The lines of one wait. A reason is any value that stays equal while only time passes."""

    def __init__(self) -> None:
        self._said_s: dict[object, float] = {}
        """When each reason was said last, the latest at the end."""
        self._last_s = float("-inf")

    def is_due(self, reason: object, now_s: float) -> bool:
        """Whether to say this reason now. If so, it counts as said."""
        before_s = self._said_s.get(reason, float("-inf"))
        if now_s - self._last_s < LEAST_S or now_s - before_s < AGAIN_S:
            return False
        self._said_s.pop(reason, None)
        self._said_s[reason] = self._last_s = now_s
        if len(self._said_s) > KEPT_MAX:
            del self._said_s[next(iter(self._said_s))]
        return True

    def forget(self) -> None:
        """The wait is over: what is said of the next one is news."""
        self._said_s.clear()
