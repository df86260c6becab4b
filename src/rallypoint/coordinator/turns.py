"""Shares the event loop between runs, so that no run and no connection blocks the others.

Work that is put off is done piece by piece, one piece in each turn of the loop, from one run after
another. While several runs send, each run has a slice of time in each turn, no matter how many
connections it has. The rest of its input waits. A piece cannot be interrupted, and some take longer
than a slice (a value of megabytes, a wait for thousands of keys). A run has a credit for these.
When that is used up, it pauses between them, so that they delay only about one in a hundred calls
of another run.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Any, Final, Protocol

Work = Callable[[], bool]
"""Does a piece of work. Returns whether more is left."""

SLICE_S: Final = 0.0002
"""A run's time in one turn of the loop while others send: about ten calls of its store.
"""
BURST_S: Final = 0.01
"""The credit: how long such pieces may take together, in seconds, before their run pauses."""
DUTY: Final = 0.01
"""The share of the time that such pieces may take in the long run."""
LINE_S: Final = 2.0
"""About the longest wait of a connection for its turn, in seconds. Its heartbeats wait as well."""
ALONE_AFTER_TICKS: Final = 20
"""If only one run was heard for this many ticks of the coordinator, it need not share."""


class Loop(Protocol):
    """What this part needs from an event loop."""

    def call_soon(self, callback: Callable[[], None]) -> Any:
        """Call back in the next turn."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        """Call back in a turn after `delay` seconds."""


class Turns:
    """The turns of one event loop. If `loop` is None, work is done at once and no slice ends."""

    def __init__(
        self,
        loop: Loop | None = None,
        clock_s: Callable[[], float] = time.perf_counter,
        used_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self.loop = loop
        self.clock_s = clock_s
        self.used_s = used_s
        """The clock for long pieces: CPU time, so that a run is not charged for other processes."""
        self._lines: dict[Hashable, deque[Work]] = {}  # the next run first
        self._is_set = False
        self._looks_at_s = math.inf  # set while every line has to pause
        self._longest: dict[Hashable, int] = {}  # each line, since it was empty
        self.last: Hashable = None
        """The run of the last call of `slice_s`."""
        self.is_shared = False
        """Whether several runs send. Otherwise `last` is alone."""
        self._shared_ticks = 0  # for how many more ticks
        # For runs with long pieces: the credit that was left, and when.
        self._credits: dict[Hashable, tuple[float, float]] = {}
        self._rests: dict[Hashable, float] = {}  # until when they pause

    # -- slices --------------------------------------------------------------------------------

    def slice_s(self, run: Hashable) -> float | None:
        """How long this run may use the loop now, in seconds; None: no limit, as it is alone.

        0: not at all, because its input has to wait behind work that it has put off, or because it
        has used more than its share of the time. `run` is None for connections that have not
        attached, which do not count as a run that shares the loop.
        """
        if run is not self.last and run is not None:
            if self.last is not None and self.loop is not None:
                self.is_shared, self._shared_ticks = True, ALONE_AFTER_TICKS
            self.last = run
        if not self.is_shared:
            return None
        must_pause = run in self._rests and self._rests[run] > self.clock_s()
        return 0.0 if must_pause or run in self._lines else SLICE_S

    def tick(self) -> None:
        """Call it at each tick. A run that is not heard any more does not share."""
        if self._shared_ticks:
            self._shared_ticks -= 1
            if not self._shared_ticks:
                self.is_shared = False
                self._credits.clear()
                self._rests.clear()
                self._set()

    def alone(self) -> None:
        """At most one run has connected nodes: it need not share.

        Used credit stays used, so that a run gains nothing if its nodes reconnect.
        """
        self.is_shared, self.last = False, None
        self._set()

    def spent(self, run: Hashable, took_s: float) -> None:
        """The run has used the shared loop for this many seconds without a break."""
        # The frame at the end of a slice takes some time itself, so twice a slice is no long piece.
        if took_s <= 2 * SLICE_S or not self.is_shared:
            return
        now_s = self.clock_s()
        credit_s, since_s = self._credits.get(run, (BURST_S, now_s))
        credit_s = min(BURST_S, credit_s + DUTY * (now_s - since_s)) - took_s
        self._credits[run] = (credit_s, now_s)
        if credit_s < 0:
            waiting = max(len(self._lines.get(run, ())) + 1, self._longest.get(run, 0))
            self._rests[run] = now_s + min(-credit_s / DUTY, LINE_S / waiting)

    # -- work that is put off ------------------------------------------------------------------

    def later(self, run: Hashable, work: Work) -> None:
        """Do this in later turns, after the earlier work that this run has put off."""
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
        """The run was removed."""
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
            self._lines[run] = line  # after the other runs
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
        """The next run that need not pause, in a tuple, as None is a valid run here; () if none.

        If all have to pause, `_look` is called when the first pause ends.
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


class InputTurns:
    """The turns in which the input of one connection is read. `run`: its run, once it has one.

    `put_off` has the ids of all connections whose input waits for its turn. This class must not
    read or keep any input: the connection's reader does that.
    """

    __slots__ = ("_connection_id", "_put_off", "_turns", "run")

    def __init__(self, turns: Turns, put_off: dict[int, None], connection_id: int) -> None:
        self.run: Hashable = None
        self._turns = turns
        self._put_off = put_off
        self._connection_id = connection_id

    @property
    def are_due(self) -> bool:
        """Whether input of this connection waits for its turn."""
        return self._connection_id in self._put_off

    def later(self, work: Work) -> None:
        """Do this after the turns of the other connections."""
        self._put_off[self._connection_id] = None
        self._turns.later(self.run, work)

    def had_all(self) -> None:
        """No input waits for its turn any more."""
        self._put_off.pop(self._connection_id, None)

    def slice_s(self) -> float | None:
        """How long this connection may be read now, in seconds; None: no limit; 0: use `later`."""
        turns, run = self._turns, self.run
        if run is turns.last and not turns.is_shared:
            return None  # computed here, because slice_s is called for every message
        return turns.slice_s(run)

    def clock_s(self) -> float:
        """The clock by which slices are measured, in seconds."""
        return self._turns.used_s()

    def spent(self, took_s: float) -> None:
        """This connection was read for this many seconds without a break."""
        self._turns.spent(self.run, took_s)
