"""Deadlines of all runs in one heap, on the coordinator's clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Final

COMPACT_MIN: Final = 64
"""How many cancelled timers may stay in the heap."""


class ScheduledCall:
    """One callback that is due later."""

    __slots__ = ("_callback", "_timers")

    def __init__(self, timers: Timers, callback: Callable[[], None]) -> None:
        self._timers: Timers | None = timers
        self._callback = callback

    def cancel(self) -> None:
        """Withdraw the callback. Idempotent; no effect after it was called."""
        timers, self._timers = self._timers, None
        if timers is not None:
            timers.cancelled()

    @property
    def is_cancelled(self) -> bool:
        return self._timers is None

    def fire(self) -> None:
        """Call the callback. Only for Timers."""
        self._timers = None
        self._callback()


class Timers:
    """Callbacks with their due times, in seconds on the owner's clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ScheduledCall]] = []
        self._serials = count()
        self._cancelled = 0

    def __len__(self) -> int:
        """How many callbacks are due later."""
        return len(self._heap) - self._cancelled

    def call_at(self, due_s: float, callback: Callable[[], None]) -> ScheduledCall:
        """Call `callback` at `due_s`; callbacks with the same time in the order of adding."""
        timer = ScheduledCall(self, callback)
        heapq.heappush(self._heap, (due_s, next(self._serials), timer))
        return timer

    def cancelled(self) -> None:
        """A callback in the heap was cancelled. O(1) amortized. Only for ScheduledCall."""
        self._cancelled += 1
        if self._cancelled > max(COMPACT_MIN, len(self._heap) // 2):
            self._heap = [each for each in self._heap if not each[2].is_cancelled]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_due_s(self) -> float | None:
        """When the next callback is due; None if there is none."""
        self._drop_cancelled()
        return self._heap[0][0] if self._heap else None

    def run_due(self, now_s: float) -> None:
        """Call all due callbacks, in order, except those that are added meanwhile.

        If one raises, the later ones stay due.
        """
        first_new = next(self._serials)
        self._drop_cancelled()
        while self._heap and self._heap[0][0] <= now_s and self._heap[0][1] < first_new:
            heapq.heappop(self._heap)[2].fire()
            self._drop_cancelled()

    def _drop_cancelled(self) -> None:
        while self._heap and self._heap[0][2].is_cancelled:
            heapq.heappop(self._heap)
            self._cancelled -= 1
