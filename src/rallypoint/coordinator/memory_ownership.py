"""Runs that are kept in the memory of one coordinator: it owns each of them while it lives.

No other process can take such a run over. So there is no lease, no log and no register. For runs on
a shared ledger, see `run_ownership`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial

from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import Seen
from rallypoint.core.values import Address, CloseRecord, RoundRecord


def _at_once(callback: Callable[[], None]) -> None:
    callback()


class MemoryOwnership:
    """Implements `coordinator.Ownership`.

    `call_soon` calls back in the next turn of the event loop. Without one, a commit is answered
    before `commit` returns; `HostedRun.post` keeps the order then.
    """

    is_in_memory = True
    process = ""
    addresses: tuple[Address, ...] = ()
    logs = None

    def __init__(
        self,
        ledger_id: str = "",
        call_soon: Callable[[Callable[[], None]], object] = _at_once,
    ) -> None:
        # A new process has another one: nodes of the old one are told that their run was lost.
        self.ledger_id = ledger_id or secrets.token_hex(8)
        self._call_soon = call_soon
        self._beats = 0

    async def start(self, coordinator: Coordinator, addresses: tuple[Address, ...]) -> None:
        """There is nothing to reach."""

    async def hand_over(self, timeout_s: float, reason: str) -> None:
        """No other process can take the runs."""

    async def aclose(self) -> None:
        """There is nothing to stop."""

    def claim(self, run_id: str, seen: Seen | None = None) -> None:
        """Every run is owned from its beginning."""

    def forget(self, run_id: str) -> None:
        """Nothing of the run is kept here."""

    def beat(self) -> int:
        """Advances each time."""
        self._beats += 1
        return self._beats

    def commit(self, run: HostedRun, record: RoundRecord | CloseRecord) -> None:
        """A record in memory is safe at once: Committed follows."""
        # In a turn of its own: a round of thousands is told for milliseconds, which the connection
        # that was ready last must not be charged for (`Turns.spent`).
        self._call_soon(partial(_committed, run))

    def note(self, run: HostedRun, effect: do.Note) -> None:
        """Never called: marks are for a successor, and there is none."""
        raise AssertionError(effect)

    def check_lease(self) -> None:
        """There is no lease."""

    def may_answer(self, run_id: str) -> bool:
        """True: no other process can own the run."""
        return True

    def gave_up(self, run: HostedRun) -> None:
        """The run ends with its memory."""


def _committed(run: HostedRun) -> None:
    if not run.is_forgotten:
        run.post(on.Committed())
