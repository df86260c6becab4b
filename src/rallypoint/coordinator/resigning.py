"""The resignation of a coordinator from a run that another process may serve better.

`core/election/resignation.py` has the rule. This part tells it which nodes are heard here and which
other processes have a lease, and gives the run up. It decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from rallypoint.coordinator.claimed_run import ClaimedRun
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.lease_manager import LeaseManager
from rallypoint.coordinator.owned_runs import OwnedRuns
from rallypoint.core import election as e
from rallypoint.errors import LedgerError

_log = logging.getLogger("rallypoint.coordinator")

REMEMBERED_MAX: Final = 1_000
"""How many runs that this process has given up it remembers at most."""


class Resigning:
    """The resignations of one process.

    `may_decide`: whether the process owns the run by this claim, and may decide for it now.
    `request`: makes a request for a run in the background. `resign`: gives the run up, and does not
    take it for so many seconds.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        lease: LeaseManager,
        runs: OwnedRuns,
        may_decide: Callable[[ClaimedRun], bool],
        request: Callable[[Coroutine[Any, Any, None], str], None],
        resign: Callable[[ClaimedRun, float], None],
    ) -> None:
        self._after_s = config.yield_after_s
        self._lease = lease
        self._runs = runs
        self._may_decide = may_decide
        self._request = request
        self._resign = resign
        self._resignations: dict[str, e.Resignation] = {}
        """Of the runs that this process owns."""
        self._given_up: dict[str, e.Resignation] = {}
        """Of runs that it has given up, and may own again: the oldest first."""

    def won(self, run_id: str, now_s: float) -> None:
        """This process owns the run now."""
        if self._after_s is not None:
            known = self._given_up.pop(run_id, None) or self._resignations.get(run_id)
            known = known or e.Resignation(self._after_s, self._lease.timing.ttl_s)
            self._resignations[run_id] = known
            known.won(now_s)

    def lost(self, run_id: str) -> None:
        """This process does not own the run any more."""
        known = self._resignations.pop(run_id, None)
        if known is not None and known.has_resigned:
            self._given_up[run_id] = known
        if len(self._given_up) > REMEMBERED_MAX:
            del self._given_up[next(iter(self._given_up))]

    def forget(self, run_id: str) -> None:
        """The run is over."""
        self._resignations.pop(run_id, None)
        self._given_up.pop(run_id, None)

    def tick(self, claimed: ClaimedRun, now_s: float) -> None:
        """Look at a run of this process. Call it about ten times in `yield_after_s`."""
        resignation = self._resignations.get(claimed.run_id)
        # R5: only the owner resigns.
        if resignation is None or not self._may_decide(claimed):
            return
        heard = self._runs.heard(claimed.run_id)
        if heard is None:
            return
        resignation.heard(heard, now_s)
        if resignation.should_look(heard, now_s):
            self._request(self._resign_for_another(claimed, resignation), claimed.run_id)

    async def _resign_for_another(self, claimed: ClaimedRun, resignation: e.Resignation) -> None:
        run_id = claimed.run_id
        try:
            leases = await self._lease.others(run_id)
        except LedgerError as error:
            _log.debug("run %s: the leases of other coordinators cannot be read: %s", run_id, error)
            return
        others = self._runs.others(run_id, leases) if leases is not None else None
        heard = self._runs.heard(run_id)
        # R5: after the wait it may own the run no more.
        if heard is None or not self._may_decide(claimed):
            return
        if resignation.should_resign(others, heard, asyncio.get_running_loop().time()):
            reason = "no other node reaches this coordinator: it resigns"
            _log.warning(
                "run %s: %s; its addresses are %s, and --interface, --local-addr and --port-range "
                "(serve: --advertise and --port) give others",
                run_id,
                reason,
                ", ".join(map(str, self._lease.addresses)) or "unknown",
            )
            self._resign(claimed, resignation.pause_s())
            self._runs.deposed(run_id, reason)
