"""Pauses between tries: each is twice as long as the last, up to a bound."""

from __future__ import annotations

QUIET_TIMES = 10
"""If there was no try for this many times the longest pause, the next pause is the first one."""


class Backoff:
    """Pauses in seconds: `first_s`, then twice as long each time, and never more than `most_s`."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = max(first_s, most_s)
        self._next_s = first_s
        self._asked_s = float("-inf")

    def next_s(self, now_s: float) -> float:
        """The pause that begins now."""
        if now_s - self._asked_s > QUIET_TIMES * self._most_s:
            self.reset()
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, self._most_s)
        self._asked_s = now_s
        return pause_s

    def reset(self) -> None:
        """Call after a successful try: the next pause is the first one again."""
        self._next_s = self._first_s
