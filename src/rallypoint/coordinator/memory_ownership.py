"""Runs in the memory of one coordinator, which owns each of them until it ends.

No other process can take over such a run. So there is no lease, no log and no register. For runs on
a shared ledger, see `run_ownership`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rallypoint import runtime
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import Seen
from rallypoint.core.values import Address, CloseRecord, EndedOwner, RoundRecord


def _at_once(callback: Callable[[], None]) -> None:
    callback()


class MemoryOwnership:
    """Implements `coordinator.Ownership`.

    `call_soon` calls back in the next turn of the event loop. Without it, a commit is answered
    before `commit` returns, and `HostedRun.post` keeps the order.
    """

    is_in_memory = True
    may_decide_now = True
    process = ""
    addresses: tuple[Address, ...] = ()
    logs = None

    def __init__(
        self,
        ledger_id: str = "",
        call_soon: Callable[[Callable[[], None]], object] = _at_once,
    ) -> None:
        # A new process has a new id, by which nodes of the old process learn that their run was
        # lost.
        self.ledger_id = ledger_id or runtime.token_hex(8)
        self._call_soon = call_soon
        self._beats = 0

    async def start(self, coordinator: Coordinator, addresses: tuple[Address, ...]) -> None:
        """Does nothing: there is no ledger."""

    async def before_close(self) -> None:
        """Does nothing: no other process can have replaced this one."""

    async def hand_over(self, timeout_s: float, reason: str) -> None:
        """Does nothing: no other process can take the runs."""

    async def aclose(self) -> None:
        """Does nothing: there is nothing to stop."""

    def claim(self, run_id: str, seen: Seen | None = None, ended: EndedOwner | None = None) -> None:
        """Does nothing: every run is owned from its beginning."""

    def forget(self, run_id: str) -> None:
        """Does nothing: no data of the run is kept here."""

    def beat(self) -> int:
        """A counter that advances with each call."""
        self._beats += 1
        return self._beats

    def commit(self, run: HostedRun, record: RoundRecord | CloseRecord) -> None:
        """Answer with Committed: a record in memory is safe at once."""
        # In a separate turn of the loop: to send a round to thousands of nodes takes milliseconds,
        # and these must not be charged to the connection that was ready last (`Turns.spent`).
        self._call_soon(partial(_committed, run))

    def write_marks(self, run: HostedRun, effect: do.WriteMarks) -> None:
        """Never called: marks are for a successor, and there is none."""
        raise AssertionError(effect)

    def check_lease(self) -> None:
        """Does nothing: there is no lease."""

    def connection_lost(self) -> None:
        """Does nothing: no other process can take it for ended."""

    def may_answer(self, run_id: str) -> bool:
        """True: no other process can own the run."""
        return True

    def gave_up(self, run: HostedRun) -> None:
        """Does nothing: the run ends with its memory."""


def _committed(run: HostedRun) -> None:
    if not run.is_forgotten:
        run.post(on.Committed())
