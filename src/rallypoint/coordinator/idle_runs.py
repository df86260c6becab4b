"""Runs without connected nodes: which are over, and which may be forgotten early.

`core/quotas` decides how long a run of each kind is kept. The coordinator removes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import Final

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core.quotas import Idle, Keep, keep_s, may_evict
from rallypoint.core.values import Phase

LOOK_AGAIN_S: Final = 10.0
"""How often, in seconds, to check an idle run that must stay for another reason."""
STALE_LOOKS_FEW: Final = 64
"""How many entries of removed runs may stay in the heap."""


class IdleRuns:
    """The idle runs among `runs`, which has all runs of a coordinator by name.

    `now_s`: the coordinator's clock. `is_in_memory`: whether the runs end with this process.
    """

    def __init__(
        self,
        runs: Mapping[str, HostedRun],
        config: CoordinatorConfig,
        now_s: Callable[[], float],
        *,
        is_in_memory: bool,
    ) -> None:
        self._runs = runs
        self._now_s = now_s
        self._is_in_memory = is_in_memory
        self._empty_keep_s = config.empty_run_keep_s
        self._keep = Keep(
            config.closed_run_keep_s, config.empty_run_keep_s, config.unformed_run_keep_s
        )
        self._kinds: dict[Idle, dict[str, HostedRun]] = {kind: {} for kind in Idle}
        """For each kind, the longest idle run first."""
        self._due: list[tuple[float, int, str]] = []
        """When to check whether a run is over: (time, serial number, name); a heap."""
        # The entries have names, not runs, so that a removed run does not stay in memory.
        self._serial = 0

    def __len__(self) -> int:
        return sum(map(len, self._kinds.values()))

    def add(self, run: HostedRun) -> None:
        """The run becomes idle, or is idle and has changed its kind."""
        self.remove(run)
        run.idle_since_s = self._now_s()
        self._kinds[run.idle_kind][run.run_id] = run
        self._look_at(run, run.idle_since_s + self._keep_s(run))

    def remove(self, run: HostedRun) -> None:
        """The run is not idle any more, or was removed."""
        for runs in self._kinds.values():
            if runs.get(run.run_id) is run:
                del runs[run.run_id]

    def over(self, now_s: float) -> Iterator[HostedRun]:
        """Runs that are over, to be forgotten at once. O(due entries)."""
        while self._due and self._due[0][0] < now_s:
            run = self._looked_at(heappop(self._due))
            if run is None:
                continue
            run.look_due_s = math.inf
            if run.attached_count:
                continue  # It gets a new entry when it is idle again.
            due_s = run.idle_since_s + self._keep_s(run)
            if due_s < now_s and self._is_over(run, now_s):
                yield run
            else:
                self._look_at(run, max(due_s, now_s + min(LOOK_AGAIN_S, self._keep_s(run))))

    def evictable(self) -> Iterator[HostedRun]:
        """Runs that may be forgotten early: those that never had a round first, then the oldest."""
        now_s = self._now_s()
        for kind, runs in self._kinds.items():
            for run in runs.values():
                idle_s = now_s - run.idle_since_s
                if not may_evict(kind, idle_s, is_kept_here=self._is_in_memory):
                    break  # The others of this kind became idle later, so they are not due either.
                if run.is_claimed and run.membership.phase is not Phase.SUSPENDED:
                    yield run

    def _keep_s(self, run: HostedRun) -> float:
        return keep_s(run.idle_kind, run.arrivals, self._keep)

    def _is_over(self, run: HostedRun, now_s: float) -> bool:
        # While the ledger is out of reach, another process may own the run without this one's
        # knowledge.
        is_suspended = run.membership.phase is Phase.SUSPENDED
        if run.attached_count or not run.is_claimed or is_suspended:
            return False
        if run.idle_kind is not Idle.EMPTY:
            return True
        since_s = run.empty_since_s
        return since_s is not None and now_s - since_s > self._empty_keep_s

    def _look_at(self, run: HostedRun, due_s: float) -> None:
        if due_s < run.look_due_s:  # otherwise an earlier check is due, which arms this one
            run.look_due_s = due_s
            self._serial += 1
            heappush(self._due, (due_s, self._serial, run.run_id))
            if len(self._due) > 2 * len(self._runs) + STALE_LOOKS_FEW:
                self._due = [each for each in self._due if self._looked_at(each)]
                heapify(self._due)

    def _looked_at(self, look: tuple[float, int, str]) -> HostedRun | None:
        """The run of this entry; None if it was removed or has been checked before."""
        run = self._runs.get(look[2])
        return run if run is not None and run.look_due_s == look[0] else None
