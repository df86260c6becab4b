"""Work that is put off, so that no connection and no run keeps the event loop from the others.

One piece is done in each turn of the loop, of one run after another. A run that sends as fast as it
can so gets what is left over, however many connections it has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

Work = Callable[[], bool]
"""Does a piece of work; whether there is more to do."""


class Turns:
    """Owned by one event loop. `call_soon`: the loop's; without one all is done at once."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], Any] | None = None) -> None:
        self.call_soon = call_soon
        self._lines: dict[Hashable, deque[Work]] = {}  # the next run first
        self._is_set = False

    def later(self, run: Hashable, work: Work) -> None:
        """Do this in later turns, after what else this run has put off."""
        if self.call_soon is None:
            while work():
                pass
            return
        line = self._lines.get(run)
        if line is None:
            line = self._lines[run] = deque()
        line.append(work)
        self._set()

    def _set(self) -> None:
        if self._lines and not self._is_set and self.call_soon is not None:
            self._is_set = True
            self.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_set = False
        run, line = next(iter(self._lines.items()))
        del self._lines[run]
        work = line.popleft()
        if line:
            self._lines[run] = line  # behind the other runs
        try:
            if work():
                self._lines.setdefault(run, line).append(work)
        finally:
            self._set()
