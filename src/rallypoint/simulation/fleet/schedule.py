"""The calendar of a simulation: what happens at which time. No part of it reads a real clock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any


class Schedule:
    """Calls in order of their times, and of their making for one time. Times in seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, due_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Make a call at that time, or now if it has passed."""
        self._count += 1
        made = partial(call, *arguments) if arguments else call
        heappush(self._calls, (max(due_s, self.now_s), self._count, made))

    def after(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Make a call after this time."""
        self.at(self.now_s + delay_s, call, *arguments)

    def next_s(self) -> float | None:
        """When the next call is due; None if there is none."""
        return self._calls[0][0] if self._calls else None

    def step(self) -> None:
        """Make the next call. There must be one."""
        self.now_s, _, call = heappop(self._calls)
        call()
