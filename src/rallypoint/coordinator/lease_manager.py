"""A coordinator's lease: kept in the ledger, renewed, judged, handed over.

One lease for each process, however many runs it owns. What a lease allows is decided in
`core/election`. `run_ownership` asks `judge` for news, and says what they mean for the runs.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from rallypoint.core import election as e
from rallypoint.core.backoff import Backoff
from rallypoint.core.values import Address, NodeId
from rallypoint.ledger.contract import Ledger, SwapOutcome, Unknown, Versioned
from rallypoint.ledger.keys import COORDINATORS

PAUSE_MAX_S: Final = 60.0
"""The longest pause between two times at which nodes are sent away, while the lease cannot be
renewed; and after an unexpected error, until this process takes a run or a lease again."""
NO_ANSWER: Final = "no answer"


class Lost(msgspec.Struct, frozen=True):
    """Another process has revoked the lease: every run is another's now (R5)."""

    reason: str


class Suspended(msgspec.Struct, frozen=True):
    """Nothing can be decided: the last renewal that was confirmed was sent `away_s` ago."""

    reason: str
    away_s: float


class NodesMustLeave(msgspec.Struct, frozen=True):
    """The suspension lasts: nodes that cannot read the ledger have to look elsewhere."""

    away_s: float


class Restored(msgspec.Struct, frozen=True):
    """The ledger answers again, and the lease is still this process's."""


class HandingOver(msgspec.Struct, frozen=True):
    """Nothing can be decided any more: other processes may take the runs at once."""


News = Lost | Suspended | NodesMustLeave | Restored | HandingOver


class LeaseManager:
    """The lease of one process. Owned by one event loop.

    `only_run`, `lease_token` and `node` are told by the lease: the one run that this process
    serves, the token for its nodes, and the node that hosts it.
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
        """Where nodes reach this process."""
        self._ledger = ledger
        self._only_run = only_run
        self._lease_token = lease_token
        self._node = node
        self.holder = self._new_holder()
        self.is_suspended = False
        self.is_going = False
        self.problem = ""
        """Why the ledger did not answer last; "" if it did."""
        self._has_told_problem = False
        self._sendings = Backoff(timing.ttl_s, PAUSE_MAX_S)
        self._send_away_s = float("inf")

    def _new_holder(self) -> e.LeaseHolder:
        # A process name is drawn anew for every lease: a lost one is lost for good.
        return e.LeaseHolder(
            secrets.token_hex(8),
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
        """Advances while the lease is renewed."""
        return self.holder.beat

    @property
    def outage(self) -> str:
        """Why the runs are suspended; "" if they are not."""
        return (self.problem or NO_ANSWER) if self.is_suspended else ""

    def begin_anew(self) -> e.LeaseHolder:
        """Go on with a new lease, under a new name. Returns the holder of the old one."""
        former, self.holder = self.holder, self._new_holder()
        self.is_suspended = False
        return former

    # -- what has become of the lease ----------------------------------------------------------

    def judge(self, now_s: float, owns_runs: Callable[[], bool]) -> list[News]:
        """The news since the last time, in order. To be asked at each tick and after a renewal.

        After `Lost`, `begin_anew` has to be called.
        """
        if self.holder.is_lost:
            return [Lost(self.holder.lost_reason)]
        if self.holder.may_decide(now_s):
            if not self.is_suspended:
                return []
            self.is_suspended, self.problem = False, ""
            return [Restored()]
        if self.is_going:
            if self.is_suspended:
                return []
            self.is_suspended = True
            return [HandingOver()]
        return self._suspend(now_s) if owns_runs() else []

    def _suspend(self, now_s: float) -> list[News]:
        news: list[News] = []
        away_s = self.holder.renewed_ago_s(now_s)
        if not self.is_suspended:
            self._sendings.reset()
            self._send_away_s = now_s + self._sendings.next_s(now_s)
        # A request may take longer than the lease stands. So the news comes before its reason, and
        # once more when the reason is known.
        if not self.is_suspended or (self.problem and not self._has_told_problem):
            self.is_suspended, self._has_told_problem = True, bool(self.problem)
            news.append(Suspended(self.problem or NO_ANSWER, away_s))
        if now_s >= self._send_away_s:
            self._send_away_s = now_s + self._sendings.next_s(now_s)
            news.append(NodesMustLeave(away_s))
        return news

    # -- the leases of other processes ---------------------------------------------------------

    async def others(self, run_id: str) -> dict[str, int] | None:
        """The versions of those that may take the run, by process; None: the ledger lists none.

        Raises LedgerError and UnreadableError.
        """
        try:
            keys = await self._ledger.keys(COORDINATORS)
        except NotImplementedError:
            return None
        found = await asyncio.gather(*map(self._ledger.read, keys))
        leases = [(e.decode_lease(each.value), each.version) for each in found if each is not None]
        return {
            lease.process: version
            for lease, version in leases
            if lease.process != self.process and e.may_take(lease, run_id)
        }

    # -- the ledger ----------------------------------------------------------------------------

    async def read(self, key: str) -> Versioned | None:
        """Read a register. Raises LedgerError."""
        return await self._ledger.read(key)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        """Swap a register, and note whether the ledger answers. Raises LedgerError."""
        outcome = await self._ledger.swap(key, expected, value)
        self.problem = outcome.reason if isinstance(outcome, Unknown) else ""
        return outcome
