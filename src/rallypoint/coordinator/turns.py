"""Whose turn it is: so that no connection and no run keeps the event loop from the others.

What is put off is done one piece in each turn of the loop, of one run after another. While several
runs speak, a run has a slice of time in each turn, whatever the number of its connections; the rest
of its input waits. A piece cannot be interrupted. So a run whose pieces take longer than a slice (a
value of megabytes, a wait for thousands of keys) has some of that for nothing, and then waits
between them: one call in a hundred of another run may meet such a piece, and no more.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Any, Final, Protocol

Work = Callable[[], bool]
"""Does a piece of work; whether there is more to do."""

SLICE_S: Final = 0.0002
"""What a run may use in one turn of the loop while others speak: some ten calls of its store."""
BURST_S: Final = 0.01
"""How long pieces that are longer may take together before their run waits for them."""
DUTY: Final = 0.01
"""Which part of the time they may take in the long run."""
LINE_S: Final = 2.0
"""About how long a connection waits for its turn at most: its heartbeats are in what waits."""
ALONE_AFTER_TICKS: Final = 20
"""A run that alone was heard for so many ticks of the coordinator need not share its turns."""


class Loop(Protocol):
    """As much of an event loop as is needed."""

    def call_soon(self, callback: Callable[[], None]) -> Any:
        """Call it in the next turn."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        """Call it in a turn after so many seconds."""


class Turns:
    """Owned by one event loop: `loop`; without one all is done at once, and no slice ends."""

    def __init__(
        self,
        loop: Loop | None = None,
        clock_s: Callable[[], float] = time.perf_counter,
        used_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self.loop = loop
        self.clock_s = clock_s
        self.used_s = used_s
        """What slices and pieces are measured on: a run does not pay for what else the machine
        does meanwhile."""
        self._lines: dict[Hashable, deque[Work]] = {}  # the next run first
        self._is_set = False
        self._looks_at_s = math.inf  # as all that wait have to rest
        self._longest: dict[Hashable, int] = {}  # each line, since it was empty
        self.last: Hashable = None
        """The run that was asked for last."""
        self.is_shared = False
        """Whether runs share the turns; else the last one is alone."""
        self._shared_ticks = 0  # for so many ticks more, if none of them ends
        # Of runs with long pieces: what they have left, and when that was so.
        self._credits: dict[Hashable, tuple[float, float]] = {}
        self._rests: dict[Hashable, float] = {}  # until when they wait

    # -- slices --------------------------------------------------------------------------------

    def slice_s(self, run: Hashable) -> float | None:
        """How long this run may use the loop now; None: as long as it likes, as it is alone.

        0: it has put something off, so that what comes now waits behind that; or it has used more
        than its part of the time. None is who has not
        attached yet: it is no run that others share their time with.
        """
        if run is not self.last and run is not None:
            if self.last is not None and self.loop is not None:
                self.is_shared, self._shared_ticks = True, ALONE_AFTER_TICKS
            self.last = run
        if not self.is_shared:
            return None
        return 0.0 if run in self._lines or self._must_rest(run) else SLICE_S

    def _must_rest(self, run: Hashable) -> bool:
        return run in self._rests and self._rests[run] > self.clock_s()

    def tick(self) -> None:
        """Time passes: a run that is not heard any more shares nothing."""
        if self._shared_ticks:
            self._shared_ticks -= 1
            if not self._shared_ticks:
                self.is_shared = False
                self._credits.clear()
                self._rests.clear()
                self._set()

    def alone(self) -> None:
        """One run at most has nodes that are connected; the next that is heard may be that one.

        What runs owe stays: one whose nodes go and come again gains nothing by it.
        """
        self.is_shared, self.last = False, None
        self._set()

    def spent(self, run: Hashable, took_s: float) -> None:
        """The run has used the loop for so long, at one go, while it shared it.

        What ends a slice is a frame like others, and takes some time itself: that is no long piece.
        """
        if took_s <= 2 * SLICE_S or not self.is_shared:
            return
        now_s = self.clock_s()
        credit_s, since_s = self._credits.get(run, (BURST_S, now_s))
        credit_s = min(BURST_S, credit_s + DUTY * (now_s - since_s)) - took_s
        self._credits[run] = (credit_s, now_s)
        if credit_s < 0:
            waiting = max(len(self._lines.get(run, ())) + 1, self._longest.get(run, 0))
            self._rests[run] = now_s + min(-credit_s / DUTY, LINE_S / waiting)

    # -- what is put off -----------------------------------------------------------------------

    def later(self, run: Hashable, work: Work) -> None:
        """Do this in later turns, after what else this run has put off."""
        if self.loop is None:
            while work():
                pass
            return
        line = self._lines.get(run)
        if line is None:
            line = self._lines[run] = deque()
        line.append(work)
        self._longest[run] = max(self._longest.get(run, 0), len(line))
        self._set()

    def forget(self, run: Hashable) -> None:
        """There is no such run any more."""
        self._credits.pop(run, None)
        self._rests.pop(run, None)
        if self.last is run:
            self.last = None

    def _set(self) -> None:
        if self._lines and not self._is_set and self.loop is not None:
            self._is_set = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_set = False
        found = self._next()
        if not found:
            return
        (run,) = found
        line = self._lines.pop(run)
        work = line.popleft()
        if line:
            self._lines[run] = line  # behind the other runs
        began_s = self.used_s()
        try:
            if work():
                self._lines.setdefault(run, line).append(work)
        finally:
            self.spent(run, self.used_s() - began_s)
            if run not in self._lines:
                self._longest.pop(run, None)
            self._set()

    def _next(self) -> tuple[Hashable, ...]:
        """The next run that need not wait. If all do, it is looked again when the first may go.

        In a tuple, as None is a run here: that of all connections that have not attached.
        """
        if not self._rests or not self.is_shared:
            return tuple(islice(self._lines, 1))
        now_s = self.clock_s()
        until_s = []
        for run in self._lines:
            rests_s = self._rests.get(run, now_s)
            if rests_s <= now_s:
                self._rests.pop(run, None)
                return (run,)
            until_s.append(rests_s)
        if until_s and self.loop is not None and min(until_s) < self._looks_at_s:
            self._looks_at_s = min(until_s)
            self.loop.call_later(self._looks_at_s - now_s, self._look)
        return ()

    def _look(self) -> None:
        self._looks_at_s = math.inf
        self._set()
