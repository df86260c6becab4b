"""The resignation of a coordinator from a run that another process may serve better.

`core/election/resignation.py` has the rule. This part tells it which nodes are heard here and which
other processes have a lease, and gives the run up. It decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from rallypoint.coordinator.claimed_run import ClaimedRun
from rallypoint.coordinator.lease_manager import LeaseManager
from rallypoint.coordinator.owned_runs import OwnedRuns
from rallypoint.core import election as e
from rallypoint.errors import LedgerError

_log = logging.getLogger("rallypoint.coordinator")


class Resigning:
    """The resignations of one process.

    `may_decide`: whether the process owns the run by this claim, and may decide for it now.
    `request`: makes a request for a run in the background. `resign`: gives the run up, and does not
    take it for so many seconds.
    """

    def __init__(
        self,
        lease: LeaseManager,
        runs: OwnedRuns,
        may_decide: Callable[[ClaimedRun], bool],
        request: Callable[[Coroutine[Any, Any, None], str], None],
        resign: Callable[[ClaimedRun, float], None],
        now_s: Callable[[], float],
    ) -> None:
        self._lease = lease
        self._runs = runs
        self._may_decide = may_decide
        self._request = request
        self._resign = resign
        self._now_s = now_s

    def tick(self, claimed: ClaimedRun, now_s: float) -> None:
        """Look at a run of this process. Call it about ten times in `yield_after_s`."""
        resignation = claimed.resignation
        # R5: only the owner resigns.
        if resignation is None or not self._may_decide(claimed):
            return
        if self._runs.hears_others(claimed.run_id):
            resignation.heard()
            return
        resignation.unheard(now_s)
        if resignation.should_look(now_s):
            self._request(self._resign_for_another(claimed, resignation), claimed.run_id)

    async def _resign_for_another(self, claimed: ClaimedRun, resignation: e.Resignation) -> None:
        run_id = claimed.run_id
        try:
            others = await self._lease.others(run_id)
        except (LedgerError, e.UnreadableError) as error:
            _log.debug("run %s: the leases of other coordinators cannot be read: %s", run_id, error)
            return
        # R5: after the wait it may own the run no more.
        if self._may_decide(claimed) and resignation.should_resign(others, self._now_s()):
            reason = "no other node reaches this coordinator: it resigns"
            _log.warning("run %s: %s", run_id, reason)
            self._resign(claimed, resignation.pause_s())
            self._runs.deposed(run_id, reason)
