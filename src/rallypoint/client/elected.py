"""Connects to the elected coordinator of a run, which it finds through the ledger.

`discovery.Search` reads the ledger and returns what to do: attach to the owner, or become a
candidate. This file executes that: it dials the owner, the `rallypoint serve` processes that may
take the run, or the candidate that this node hosts. The connector decides when to search.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final, Protocol

from rallypoint import errors, runtime
from rallypoint.client import network
from rallypoint.client.credentials import Credentials
from rallypoint.client.dialing import Attempts, dial_elected, dial_first
from rallypoint.client.discovery import Search
from rallypoint.client.own_coordinator import OwnCoordinator
from rallypoint.core.addresses import telling
from rallypoint.core.election import AttachTo, BecomeCandidate, Lease, RunOver
from rallypoint.core.values import Address, CloseRecord, EndedOwner, RunSettings, Stamp
from rallypoint.security.access import Access
from rallypoint.settings import NodeSettings

if TYPE_CHECKING:
    from rallypoint.client.network import Connection
    from rallypoint.ledger.contract import Ledger

ELECTED_DIAL_S: Final = 2.0
"""How long one address of an elected coordinator may take, in seconds. Another one may be elected
meanwhile.
"""
MESSENGERS: Final = 16
"""About how many nodes of a run dial a replica each second while the owner does not answer.

With this many, some are alive even if most nodes of the run are dead.
"""


class RunInLedger(Protocol):
    """The ledger and the least term of the node's run."""

    @property
    def ledger_id(self) -> str:
        """The ledger that the node's run is in; "" before it was in one."""

    @property
    def term(self) -> int:
        """The term of the last coordinator; 0 before the first one."""

    def found_term(self, floor: Stamp) -> None:
        """The run cannot have an earlier term any more (R5)."""

    def found_ended(self, owner: EndedOwner) -> None:
        """The owner has ended, as far as this node has seen."""


class LedgerReader(Protocol):
    """The node, to which the search reports that the run has ended."""

    def found_closed(self, close: CloseRecord) -> None:
        """The run is closed (R6)."""

    def found_replaced(self) -> None:
        """The run's ledger was replaced by another one."""


class ElectedCoordinator:
    """The search and the dials of one node. Call `open` first.

    `ledger`: the caller's, already open; None: the endpoint's, which is opened and closed here.
    """

    def __init__(
        self,
        settings: NodeSettings,
        own: OwnCoordinator,
        credentials: Credentials,
        run: RunInLedger,
        reader: LedgerReader,
        ledger: Ledger | None,
    ) -> None:
        self.settings = settings
        self.owner_ttl_s = settings.lease_ttl_s
        """The ttl of the owner's lease, as far as this node has read it in the ledger."""
        self.was_messenger = False
        """Whether this node has dialled a replica because the owner did not answer."""
        self._lost: Connection | None = None
        """The last connection to a coordinator of the run, if that one's side has ended it, and
        nothing has answered at its address since."""
        self._own = own
        self._credentials = credentials
        self._run = run
        self._reader = reader
        self._ledger = ledger
        self._opened: Ledger | None = None
        self._search: Search | None = None

    @property
    def search(self) -> Search:
        """The search. It exists after `open` has begun."""
        assert self._search is not None
        return self._search

    @property
    def problem(self) -> str:
        """How long the ledger has been unusable, with its error; "" while it can be used."""
        if self._search is None:
            return ""
        not_yet = f"{self.settings.endpoint} has not answered yet"
        return self._search.problem or ("" if self._search.ledger.ledger_id else not_yet)

    async def open(self, ends_s: float, name: str, run: RunSettings) -> None:
        """Reach the ledger by `ends_s`. Raises LedgerError."""
        from rallypoint.ledger.open import CALL_TIMEOUT_S, open_ledger

        if self._ledger is None:
            # Shorter than the whole limit, because a call that ends by its own limit reports what
            # it tried.
            call_timeout_s = min(CALL_TIMEOUT_S, max(0.4, 0.8 * self.settings.connect_timeout_s))
            self._ledger = self._opened = open_ledger(
                self.settings.endpoint, self.settings.etcd_password, call_timeout_s=call_timeout_s
            )
        nodes = run.expected_nodes or run.min_nodes
        self._search = Search(self.settings, name, self._ledger, nodes)
        await self._search.open(ends_s)

    async def find(self, attempts: Attempts, ends_s: float, *, is_new: bool) -> Connection | None:
        """Search until there is a connection. None at `ends_s`, or when the run is over.

        With `is_new`, raises a permanent LedgerError: see Search.next.
        """
        search = self.search
        while True:
            finding = await search.next(ends_s, is_new=is_new)
            attempts.problem = search.problem
            if self._has_learned(search):
                return None
            match finding:
                case RunOver(close):
                    self._reader.found_closed(close)
                    return None
                case AttachTo() | BecomeCandidate():
                    connection = await self._dial(finding, attempts)
                    if connection is not None:
                        return connection
            if asyncio.get_running_loop().time() >= ends_s:
                return None

    async def find_better(self, attempts: Attempts, connection: Connection) -> Connection | None:
        """Search beside a connection whose coordinator does not renew its lease.

        Returns a connection to another owner, to a replica that can become the owner, or to this
        node's own candidate; None when the run is over. It finds nothing while the ledger does not
        answer this node either.
        """
        search = self.search
        search.begin(at_once=False)
        while True:
            finding = await search.next(math.inf)
            if self._has_learned(search):
                return None
            match finding:
                case RunOver(close):
                    self._reader.found_closed(close)
                    return None
                case AttachTo(lease=lease) if self._is_at(lease, connection):
                    search.again()
                case AttachTo() | BecomeCandidate():
                    better = await self._dial(finding, attempts)
                    if better is not None:
                        return better
                case None:
                    search.again()

    def attached(self) -> None:
        """A coordinator of the run has attached this node."""
        self.was_messenger, self._lost = False, None

    def has_closed(self, connection: Connection, *, was_attached: bool) -> None:
        """A connection of this node has ended. `was_attached`: to the run's coordinator."""
        if was_attached:
            self._lost = connection if connection.was_ended_by_peer else None
        elif self._lost is not None and connection.address == self._lost.address:
            self._lost = None  # It has answered there, so it has not ended.

    async def close_ledger(self) -> None:
        """Close the ledger, if it was opened here. Idempotent."""
        ledger, self._opened = self._opened, None
        if ledger is not None:
            await ledger.aclose()

    def _has_learned(self, search: Search) -> bool:
        """Pass on the ledger's term. True if the ledger was replaced, so that the run is lost."""
        known = self._run.ledger_id
        is_other = bool(known) and search.floor.ledger_id not in ("", known)
        if is_other or (known and isinstance(search.error, errors.LedgerReplacedError)):
            self._reader.found_replaced()
            return True
        self._run.found_term(search.floor)
        return False

    def _is_at(self, owner: Lease, connection: Connection) -> bool:
        is_own = self._own.is_of(owner) and self._own.is_at(connection)
        return connection.target in owner.addresses or is_own

    # -- dialing ---------------------------------------------------------------------------------

    async def _dial(
        self, finding: AttachTo | BecomeCandidate, attempts: Attempts
    ) -> Connection | None:
        search = self.search
        if isinstance(finding, BecomeCandidate):
            ended = finding.ended
            if ended is not None:
                self._run.found_ended(ended)
            but = "" if ended is None else ended.process
            connection = await self._dial_replicas(attempts, but)
            if connection is not None:
                return connection
            if await self._own.become_candidate(search.ledger, attempts, finding.seen, ended):
                return await self._dial_own(attempts)
            return None
        connection = await self._dial_owner(finding.lease, attempts)
        if connection is not None:
            return connection
        refused = await self._has_seen_end(finding, attempts)
        if refused is not None and search.owner_ended(refused):
            return None
        if search.again() and self._own.hosted is None:
            await self._own.become_candidate(search.ledger, attempts, None)
        # The owner may be dead. A `rallypoint serve` takes the run only after it has seen the lease
        # expire itself. So some nodes dial one now, which makes it watch the lease. They are few,
        # because a replica redirects them to an owner that is alive.
        if self.was_messenger or runtime.here().chance.random() * search.nodes >= MESSENGERS:
            return None
        self.was_messenger = True
        return await self._dial_replicas(attempts, finding.lease.process)

    async def _has_seen_end(self, owner: AttachTo, attempts: Attempts) -> Address | None:
        """The address by which this node sees that the owner's process has ended: see EndedOwner.

        Its side has ended the connection, and now the same address refuses a new one. It may do so
        only at a later dial: a process that is being killed has its port for a moment more.
        """
        lost = self._lost
        if lost is None:
            return None
        if owner.stamp.term != self._run.term:
            self._lost = None  # It was another owner's.
            return None
        if lost.address not in attempts.refusals or not await _tells(owner.lease, lost.target):
            return None
        self._lost = None  # Once a term is enough.
        return lost.target

    async def _dial_owner(self, owner: Lease, attempts: Attempts) -> Connection | None:
        if self._own.is_of(owner):
            return await self._dial_own(attempts)
        self.owner_ttl_s = owner.ttl_s or self.settings.lease_ttl_s
        access = self._credentials.for_lease(owner)
        lost = self._lost
        if lost is not None and len(owner.addresses) > 1 and await _tells(owner, lost.target):
            # If it refuses, the others need no dial: a dead one would take seconds.
            place = (lost.target,)
            connection = await dial_elected(place, access, attempts, ELECTED_DIAL_S)
            if connection is not None or attempts.only_refused:
                return connection
        return await dial_elected(owner.addresses, access, attempts, ELECTED_DIAL_S)

    async def _dial_own(self, attempts: Attempts) -> Connection | None:
        hosted = self._own.hosted
        if hosted is None:
            return None
        return await dial_elected((hosted.address,), Access(hosted.token), attempts, ELECTED_DIAL_S)

    async def _dial_replicas(self, attempts: Attempts, but: str) -> Connection | None:
        """Dial the `rallypoint serve` processes on the ledger, except the process `but`."""
        leases = [each for each in await self.search.replicas() if each.process != but]
        self.owner_ttl_s = max([each.ttl_s for each in leases], default=self.owner_ttl_s)
        dialled = [(each.addresses, self._credentials.access_of(each)) for each in leases]
        return await dial_first(dialled, attempts, ELECTED_DIAL_S)


async def _tells(owner: Lease, place: Address) -> bool:
    """Whether a refusal at this address of the owner tells that its process has ended."""
    here = network.here()
    own = [each for each in owner.addresses if await here.is_this_host(each.host)]
    return place in telling(owner.addresses, own)
