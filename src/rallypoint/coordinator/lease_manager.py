"""A coordinator's lease: kept in the ledger, renewed, judged, handed over.

A process has one lease, no matter how many runs it owns. `core/election` decides what a lease
allows. `run_ownership` calls `judge` for news, and applies them to the runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from rallypoint import runtime
from rallypoint.core import election as e
from rallypoint.core.backoff import Backoff
from rallypoint.core.values import Address, NodeId
from rallypoint.ledger.contract import Ledger, SwapOutcome, Unknown, Versioned
from rallypoint.ledger.keys import COORDINATORS

PAUSE_MAX_S: Final = 60.0
"""While the lease cannot be renewed, nodes are redirected again after a pause of at most this many
seconds. After an unexpected error, this process pauses as long at most before it takes a run or a
lease again.
"""
NO_ANSWER: Final = "no answer"


class Lost(msgspec.Struct, frozen=True):
    """Another process has revoked the lease. This process owns no run any more (R5).

    `was_alive`: the lease was revoked because this process had ended, as far as others had seen.
    """

    reason: str
    was_alive: bool = False


class Suspended(msgspec.Struct, frozen=True):
    """No decision is allowed: the last confirmed renewal was sent `away_s` ago."""

    reason: str
    away_s: float


class NodesMustLeave(msgspec.Struct, frozen=True):
    """The suspension goes on. Nodes that cannot read the ledger have to try other coordinators."""

    away_s: float


class Restored(msgspec.Struct, frozen=True):
    """The ledger answers again, and this process still has its lease."""


class HandingOver(msgspec.Struct, frozen=True):
    """No decision is allowed any more: other processes may take the runs at once."""


News = Lost | Suspended | NodesMustLeave | Restored | HandingOver


class LeaseManager:
    """The lease of one process. Owned by one event loop.

    The lease contains `only_run` (the one run that this process serves), `lease_token` (the token
    for its nodes) and `node` (the node that hosts it).
    """

    def __init__(
        self,
        ledger: Ledger,
        timing: e.Timing,
        *,
        only_run: str = "",
        lease_token: str = "",
        node: NodeId | None = None,
    ) -> None:
        self.timing = timing
        self.addresses: tuple[Address, ...] = ()
        """The addresses where nodes reach this process."""
        self._ledger = ledger
        self._only_run = only_run
        self._lease_token = lease_token
        self._node = node
        self.holder = self._new_holder()
        self.is_suspended = False
        self.is_going = False
        self.problem = ""
        """Why the ledger did not answer the last request; "" if it did."""
        self._has_told_problem = False
        self._sendings = Backoff(timing.ttl_s, PAUSE_MAX_S)
        self._send_away_s = float("inf")

    def _new_holder(self) -> e.LeaseHolder:
        # Each lease has a new random process name, because a lost lease is never regained.
        return e.LeaseHolder(
            # R5: a new name, so that nothing of the lost lease counts.
            runtime.token_hex(8),
            self.addresses,
            self.timing,
            only_run=self._only_run,
            token=self._lease_token,
            node=self._node,
        )

    @property
    def process(self) -> str:
        """This process's name in the ledger."""
        return self.holder.process

    @property
    def beat(self) -> int:
        """A counter that advances while the lease is renewed."""
        return self.holder.beat

    @property
    def outage(self) -> str:
        """Why the runs are suspended; "" if they are not."""
        return (self.problem or NO_ANSWER) if self.is_suspended else ""

    def begin_again(self) -> e.LeaseHolder:
        """Continue with a new lease under a new name. Returns the holder of the old one."""
        former, self.holder = self.holder, self._new_holder()
        self.is_suspended = False
        return former

    # -- the state of the lease ----------------------------------------------------------------

    def judge(self, now_s: float, owns_runs: Callable[[], bool]) -> list[News]:
        """The news since the last call, in order. Call it at each tick and after a renewal.

        The caller must call `begin_again` after `Lost`.
        """
        # R5: a lost lease is lost for all runs.
        if self.holder.is_lost:
            was_alive = self.holder.was_revoked_early and not self.is_going
            return [Lost(self.holder.lost_reason, was_alive)]
        # R5: only a renewal in time allows decisions.
        if self.holder.may_decide(now_s):
            if not self.is_suspended:
                return []
            self.is_suspended, self.problem = False, ""
            # R7: the runs go on.
            return [Restored()]
        if self.is_going:
            if self.is_suspended:
                return []
            self.is_suspended = True
            # R5: nothing is decided any more, as others may take over.
            return [HandingOver()]
        # R5: the lease is too old, so all runs are suspended.
        return self._suspend(now_s) if owns_runs() else []

    def _suspend(self, now_s: float) -> list[News]:
        news: list[News] = []
        away_s = self.holder.renewed_ago_s(now_s)
        if not self.is_suspended:
            self._sendings.reset()
            self._send_away_s = now_s + self._sendings.next_s(now_s)
        # A request may take longer than the lease is valid. So the news comes before its reason is
        # known, and again when it is known.
        if not self.is_suspended or (self.problem and not self._has_told_problem):
            self.is_suspended, self._has_told_problem = True, bool(self.problem)
            # R5: before anything else is decided.
            news.append(Suspended(self.problem or NO_ANSWER, away_s))
        # R7: nodes may reach a coordinator that reaches the ledger.
        if now_s >= self._send_away_s:
            self._send_away_s = now_s + self._sendings.next_s(now_s)
            news.append(NodesMustLeave(away_s))
        return news

    # -- the leases of other processes ---------------------------------------------------------

    async def others(self, run_id: str) -> list[tuple[e.Lease, int]] | None:
        """Leases of processes that may take the run, with their versions.

        None if the ledger lists none.

        Raises LedgerError.
        """
        try:
            keys = await self._ledger.keys(COORDINATORS)
        except NotImplementedError:
            return None
        found = await asyncio.gather(*map(self._ledger.read, keys))
        leases = [(_decoded(each), each.version) for each in found if each is not None]
        return [
            (lease, version)
            for lease, version in leases
            # R7: only another process can take over, and only one whose lease can be read.
            if lease is not None and lease.process != self.process and e.may_take(lease, run_id)
        ]

    # -- the ledger ----------------------------------------------------------------------------

    async def read(self, key: str) -> Versioned | None:
        """Read a register. Raises LedgerError."""
        return await self._ledger.read(key)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        """Swap a register, and note whether the ledger answers. Raises LedgerError."""
        outcome = await self._ledger.swap(key, expected, value)
        self.problem = outcome.reason if isinstance(outcome, Unknown) else ""
        return outcome


def _decoded(found: Versioned) -> e.Lease | None:
    """The lease; None if it cannot be read: it is damaged, or of another release."""
    try:
        return e.decode_lease(found.value)
    except e.UnreadableError:
        return None
