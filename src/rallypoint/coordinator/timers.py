"""Deadlines of all runs in one heap, on the coordinator's clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Timers:
    """Callbacks with their due times, in seconds on whatever clock the owner reads."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serials = count()

    def __len__(self) -> int:
        return len(self._heap)

    def call_at(self, due_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` at `due_s`. Among equals, first come first called. Never cancelled."""
        heapq.heappush(self._heap, (due_s, next(self._serials), callback))

    def next_due_s(self) -> float | None:
        """When the next callback is due; None if there is none."""
        return self._heap[0][0] if self._heap else None

    def run_due(self, now_s: float) -> None:
        """Call all that are due by now, in order. Those that they set are called next time.

        One that raises does not take those after it along: they are due at the next call.
        """
        first_new = next(self._serials)
        while self._heap and self._heap[0][0] <= now_s and self._heap[0][1] < first_new:
            heapq.heappop(self._heap)[2]()
