"""When to log why something waits: when the reason changes, and rarely while it stays. Pure."""

from __future__ import annotations

from typing import Final

LEAST_S: Final = 2.0
"""The shortest time between two lines."""
AGAIN_S: Final = 30.0
"""The shortest time until a reason is repeated, also if other reasons came between."""
KEPT_MAX: Final = 16


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
