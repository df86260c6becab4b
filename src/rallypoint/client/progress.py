"""What a node reports of its workers' progress: the newest step, and when a worker advanced.

A report travels in a heartbeat, and only if a worker has advanced since the last one. So it costs
no message, and the coordinator hears of each node at most once a heartbeat. Before it ends a round
as a hang, it asks all nodes, and then it gets what the last heartbeat did not have.
"""

from __future__ import annotations

from typing import Final

from rallypoint.core.progress import Progress
from rallypoint.core.stacks import STEP_MAX

AGO_MAX_S: Final = 31_536_000.0


class ProgressReports:
    """The progress of one node's workers. All `now_s` are from one monotonic clock, in seconds.

    `timeout_s`: after how long without progress on any node the round ends as a hang; None: never.
    The time in which the node has no coordinator does not count.

    Before a worker has advanced for the first time in this run, nothing is reported, unless
    `counts_from_start`: a pattern that never matches, or a program that never reports, must not end
    a round. After that, a round is watched from its start.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self.counts_from_start = False
        self.step: int | None = None
        """The highest step of this round that a worker has reported."""
        self._number = 0
        self._has_advanced = False
        self._since_s = 0.0
        self._is_new = False
        self._detached_s: float | None = None

    def begin_round(self, number: int, now_s: float) -> None:
        """The node has a seat in this round."""
        self._number, self.step = number, None
        self._since_s = now_s
        self._is_new = True

    def advanced(self, now_s: float, step: int | None = None) -> None:
        """A worker of the present round has advanced. `step`: how far, if it has said that."""
        self._has_advanced = self._is_new = True
        self._since_s = now_s
        if self._detached_s is not None:
            self._detached_s = now_s
        if step is not None:
            step = max(-STEP_MAX, min(step, STEP_MAX))
            self.step = step if self.step is None else max(self.step, step)

    def detached(self, now_s: float) -> None:
        """The node has no coordinator from now on."""
        if self._detached_s is None:
            self._detached_s = now_s

    def attached(self, now_s: float) -> None:
        """A coordinator has attached the node. It may have heard nothing of its workers yet."""
        if self._detached_s is not None:
            self._since_s += max(0.0, now_s - max(self._detached_s, self._since_s))
            self._detached_s = None
        self._is_new = True

    def news(self, now_s: float) -> Progress | None:
        """What to report now; None if no worker has advanced since the last report."""
        if not self._is_new:
            return None
        report = self.known(now_s)
        if report is not None:
            self._is_new = False
        return report

    def known(self, now_s: float) -> Progress | None:
        """What is known now; None if nothing may be judged by it."""
        if not (self._has_advanced or self.counts_from_start):
            return None
        until_s = now_s if self._detached_s is None else self._detached_s
        ago_s = min(max(0.0, until_s - self._since_s), AGO_MAX_S)
        return Progress(self._number, self.step, round(ago_s, 3), self.timeout_s)
