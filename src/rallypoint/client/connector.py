"""Finds a coordinator, keeps a connection to it, and hosts one in this node if needed.

The connector dials the address of the endpoint or of the ledger (`elected`), follows redirects, and
searches again when a connection is lost. It must not handle rounds and requests: it gives the node
an open connection and passes on the bytes that arrive. The node's machine reads them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable
from typing import Final, Protocol

import msgspec

from rallypoint import errors, runtime
from rallypoint.client.credentials import Credentials
from rallypoint.client.dialing import Attempts, Patience, Pauses, dial_elected
from rallypoint.client.elected import ELECTED_DIAL_S, ElectedCoordinator, LedgerReader, RunInLedger
from rallypoint.client.fixed import DIAL_MIN_S, FixedCoordinator
from rallypoint.client.network import Connection
from rallypoint.client.own_coordinator import OwnCoordinator
from rallypoint.client.sockets import SocketKeeper
from rallypoint.client.waiting import left_run
from rallypoint.core.reasons import Refusal
from rallypoint.core.values import Address, NodeInfo, RunSettings
from rallypoint.ledger.contract import Ledger
from rallypoint.settings import EndpointKind, NodeSettings

_log = logging.getLogger("rallypoint.client")

GIVE_UP_MARGIN_S: Final = 1.0
"""How many seconds after its limit a search is cancelled if it has not ended by itself."""
OTHER_RUN_S: Final = 1.0
"""The longest pause, in seconds, before a node tries a coordinator of another run again."""
REDIRECTS_MAX: Final = 3
"""How many redirects in a row a node follows before it searches by itself."""
WORTH_TELLING_S: Final = 0.1
"""A shorter time without a coordinator is a redirect, which is only logged at DEBUG, in seconds."""
CIRCLE_S: Final = 0.5
"""The longest pause, in seconds, before each dial of a node that is redirected in a circle."""
_LOST_HINT: Final = (
    "the run ends with its coordinator's process; start it again, use `rallypoint serve` on a "
    "machine that stays, or an etcd:// or file:/// endpoint"
)


class NodeState(RunInLedger, Protocol):
    """What the connector reads from the node's machine."""

    @property
    def is_attached(self) -> bool:
        """Whether the coordinator has attached the node."""

    @property
    def is_over(self) -> bool:
        """Whether the run is closed, or the node was refused."""

    @property
    def is_in_memory(self) -> bool:
        """Whether the run ends with the coordinator's process."""

    @property
    def lease_ttl_s(self) -> float:
        """The ttl of the coordinator's lease; 0 if it has none or has not told it."""

    @property
    def has_workers(self) -> bool:
        """Whether the node's round is active, so that its workers run."""

    @property
    def has_said_goodbye(self) -> bool:
        """Whether the node is leaving the run."""


class ConnectedNode(LedgerReader, Protocol):
    """The node, to which the connector reports changes of the connection."""

    @property
    def gone(self) -> errors.CoordinatorError | None:
        """The error after which the node needs no coordinator any more; None before."""

    def connected(self, connection: Connection) -> None:
        """A connection is open: attach over it."""

    def received(self, data: bytes) -> None:
        """A message has arrived over the connection."""

    def disconnected(self) -> None:
        """The connection has ended."""

    def reached_at(self, host: str, before: str) -> None:
        """Others reach this machine at `host`, and perhaps not at `before`."""

    def searching(self, since_s: float) -> None:
        """There has been no coordinator since this time of the loop's clock."""

    def give_up(self, error: errors.CoordinatorError) -> None:
        """The search has ended for good with this error."""


class _Outage(msgspec.Struct):
    """What has happened since this node was last attached. Each attach starts a new one."""

    lost_s: float | None = None
    """When the coordinator was lost; None while this node is attached."""
    idle_s: float | None = None
    """Since when the node has had neither a coordinator nor workers."""
    refused_since_s: float | None = None
    """Since when the coordinator's address has refused every connection."""
    told_loss: str = ""
    """The last reason that was logged."""
    redirects: int = 0
    was_redirected: bool = False
    """Whether the last connection ended by a redirect."""
    was_let_in: bool = True
    """Whether the last coordinator that answered has attached this node."""
    pauses: Pauses = msgspec.field(default_factory=Pauses)


class Connector:
    """One node's connection to its coordinator. All methods are for the event loop of `open`.

    `connection` is the present one; None while there is none. `ledger`: see ElectedCoordinator.
    `keeper`: see Node.
    """

    def __init__(
        self,
        settings: NodeSettings,
        run: RunSettings,
        info: NodeInfo,
        state: NodeState,
        node: ConnectedNode,
        ledger: Ledger | None,
        keeper: SocketKeeper | None = None,
    ) -> None:
        self.settings = settings
        self.own = OwnCoordinator(settings, run, info.id)
        self.own.on_reached = lambda host, before: node.reached_at(host, before)
        self.credentials = Credentials(settings)
        self.fixed = FixedCoordinator(settings, self.own, self.credentials)
        """How the coordinator of any endpoint but a ledger is found."""
        self.elected: ElectedCoordinator | None = None
        """How the coordinator is found through a ledger; None for any other endpoint."""
        if settings.endpoint.kind is EndpointKind.LEDGER:
            self.elected = ElectedCoordinator(
                settings, self.own, self.credentials, state, node, ledger
            )
        self.connection: Connection | None = None
        self.is_closing = False
        self.is_joining = False
        self.limit: asyncio.Timeout | None = None
        """The limit of the present search, which `follow_workers` moves."""
        self.other_run: Refusal | None = None
        """The last refusal by a coordinator of another run, while this node joins."""
        self.was_turned_away = False
        """Whether such a refusal has arrived since the last dial."""
        self._run = run
        self._name = info.name
        self._state = state
        self._node = node
        self._keeper = keeper
        self._attempts = Attempts(settings.endpoint)
        self._reconnecting: asyncio.Task[None] | None = None
        self._beside: asyncio.Task[None] | None = None
        self._outage = _Outage()
        self._redirected_to: tuple[Address, ...] = ()
        self._redirect_failed: Attempts | None = None

    # -- queries ---------------------------------------------------------------------------------

    @property
    def looking(self) -> str:
        """Why this node has no coordinator yet; "" if it starts its own."""
        is_only_host = self.own.hosted is not None and self.elected is None
        if self.is_joining and (self.own.is_starting or is_only_host):
            return ""
        if self.other_run is not None and not self._attempts.answers:
            return self._at_another_run(self.other_run)
        problem = self.elected.problem if self.elected is not None else ""
        return problem or f"the coordinator at {self.settings.endpoint} {self._silence()}"

    def _silence(self) -> str:
        """What was tried, and what a user may have to change."""
        attempts = self._attempts
        tried = attempts.listed() or attempts.doing
        text = f"does not answer ({tried})" if tried else "does not answer"
        held = self.fixed.not_hosting if self.is_joining and not attempts.not_hosting else ""
        if held or attempts.not_hosting:
            text = f"{text}; this node cannot host it: {held or attempts.not_hosting}"
        if held or attempts.is_port_in_use:
            endpoint = self.settings.endpoint
            is_fixed = endpoint.kind is EndpointKind.HOST and endpoint.has_port
            return f"{text}; see {'--endpoint' if is_fixed else '--port-range'}"
        return f"{text}; see --port-range, --interface" if attempts.is_cut_off else text

    @property
    def gives_up_s(self) -> float:
        """When the present search gives up; infinite if it does not."""
        if self._reconnecting is None or self._outage.idle_s is None:
            return math.inf
        return self._outage.idle_s + self.settings.coordinator_lost_after_s

    @property
    def owner_ttl_s(self) -> float:
        """The ttl of the owner's lease; 0 if it has none."""
        # However the node has found it: a redirect does not tell the ttl.
        if self._state.lease_ttl_s:
            return self._state.lease_ttl_s
        return self.elected.owner_ttl_s if self.elected is not None else 0.0

    @property
    def is_searching(self) -> bool:
        """Whether the coordinator was lost and a search is under way."""
        return self._reconnecting is not None

    # -- joining -----------------------------------------------------------------------------------

    async def open(self, ends_s: float) -> None:
        """Connect to the coordinator, or host it, by `ends_s`. Raises the errors of Node.open.

        `credentials.find` comes first.
        """
        if self.elected is not None:
            await self.elected.open(ends_s, self._name, self._run)
            await self.own.find_address(None)
            self.elected.search.begin(at_once=False, is_new=True)
            finding = self.elected.find(self._attempts, ends_s, is_new=True)
            await self._use_found(finding, _now_s())
            return
        if self.settings.endpoint.kind is EndpointKind.LOCAL:
            await self.own.serve_locally(self.credentials)
        await self._connect(ends_s)
        await self.own.find_address(self.connection)

    async def ask_again(self, ends_s: float) -> None:
        """Dial again after the refusal of a coordinator that has another run, which may end soon.

        Raises RefusedError at `ends_s`, and the errors of `open`.
        """
        self.was_turned_away = False
        if self.other_run is None:  # there are other addresses
            await self._connect(ends_s)
            return
        left_s = ends_s - _now_s()
        if left_s <= 0:
            message = self._at_another_run(self.other_run)
            raise errors.refused(msgspec.structs.replace(self.other_run, message=message))
        await asyncio.sleep(min(left_s, OTHER_RUN_S * runtime.here().chance.uniform(0.5, 1.0)))
        self.was_turned_away = False
        try:
            await self._connect(ends_s)
        except errors.UnreachableError as error:
            error.hint = f"before, {self._at_another_run(self.other_run)}; {error.hint}"
            raise

    def joined(self) -> None:
        """The node has joined, or has given up joining."""
        self.is_joining, self.other_run = False, None

    def not_let_in(self, tried_s: float) -> errors.UnreachableError:
        """The error of a node that reached a coordinator but got no answer from it."""
        text = f"{self.settings.endpoint} was reached, but did not let this node in within"
        if self._redirect_failed is None:
            hint = "the coordinator may be stopped or overloaded"
            return errors.UnreachableError(f"{text} {tried_s:.1f} s", hint=hint)
        # Usually this node's own candidate has redirected it to an owner with an unreachable
        # address.
        return errors.UnreachableError(
            f"{text} {tried_s:.1f} s: the coordinator cannot be reached from here "
            f"({self._redirect_failed.listed()})",
            hint="the node that hosts it gave that address: start it with another --interface or "
            "--local-addr, or with a --port-range that the firewall lets through",
        )

    def _at_another_run(self, refusal: Refusal) -> str:
        where, own = self.settings.endpoint, self.settings.run_id
        if not refusal.run_id:  # from a release that does not send the other run in a field
            return f"at {where}: {refusal.message}"
        return f"the coordinator at {where} runs {refusal.run_id!r}; this node asked for {own!r}"

    async def _connect(self, ends_s: float) -> None:
        """Dial the endpoint, or host its coordinator. Raises a CoordinatorError at `ends_s`."""
        endpoint = self.settings.endpoint
        self._attempts = Attempts(endpoint if endpoint.has_choice else self.own.target)
        self._use(await self.fixed.find(self._attempts, ends_s))

    def _use(self, connection: Connection) -> None:
        self.connection = connection
        if self._keeper is not None:
            connection.keep_with(self._keeper)
        self._outage.was_let_in = False
        self.credentials.warn_if_open(connection)
        connection.on_message = self._node.received
        connection.on_closed = lambda reason: self._on_closed(connection, reason)
        self._node.connected(connection)

    async def _use_found(self, finding: Awaitable[Connection | None], began_s: float) -> None:
        """Use the result of a search in the ledger. Raises a CoordinatorError if there is none."""
        connection = await finding
        if connection is not None:
            self._use(connection)
        elif not self._state.is_over:
            raise self.credentials.unreachable(self._attempts, _now_s() - began_s)

    # -- answers of the coordinator ----------------------------------------------------------------

    def attached(self) -> None:
        """The coordinator has attached this node."""
        if self._outage.lost_s is not None:
            away_s = _now_s() - self._outage.lost_s
            level = logging.WARNING if away_s > WORTH_TELLING_S else logging.DEBUG
            _log.log(level, "attached, after %.1f s without a coordinator", away_s)
        self._outage = _Outage()
        if self.elected is not None:
            self.elected.attached()
            if not self.own.is_at(self.connection):
                self.own.retire()

    def redirected(self, addresses: tuple[Address, ...], reason: str) -> None:
        """The coordinator does not own the run. `addresses`: where the owner listens, if known."""
        self._redirected_to = addresses if self._outage.redirects < REDIRECTS_MAX else ()
        self._outage.redirects += 1
        self._outage.was_redirected = True
        if self.connection is not None:
            self.connection.abort(reason)

    def turned_away(self, refusal: Refusal) -> None:
        """The coordinator has another run. `ask_again` tries once more."""
        connection, self.connection = self.connection, None
        self._node.disconnected()
        if connection is not None:
            connection.abort(refusal.message)
        self.was_turned_away = True
        if connection is None or not self.fixed.turned_away(connection.target, refusal):
            self.other_run = refusal

    def drop(self, reason: str) -> None:
        """Leave this coordinator, and search again."""
        self._outage.was_redirected = False
        if self.connection is not None:
            self.connection.abort(reason)

    # -- losing and finding the coordinator again ------------------------------------------------

    def _on_closed(self, connection: Connection, reason: str) -> None:
        if connection is not self.connection:
            return
        self.connection = None
        if self.elected is not None:
            self.elected.has_closed(connection, was_attached=self._state.is_attached)
        self._end_search_beside()
        self._node.disconnected()
        if self.is_closing or self._state.is_over or self._node.gone is not None:
            return
        if self._has_heard_goodbye(connection):
            self._node.give_up(left_run())
        elif self._reconnecting is None:
            self._log_loss(reason)
            self._outage.lost_s = self._outage.lost_s or _now_s()
            self._node.searching(self._outage.lost_s)
            self._reconnecting = runtime.spawn(self._reconnect(reason), self._search_failed)

    def _has_heard_goodbye(self, connection: Connection) -> bool:
        """Whether the run's coordinator closed the connection as the answer to a goodbye."""
        said = self._state.has_said_goodbye
        return said and connection.was_closed_by_peer and not self._outage.was_redirected

    def _log_loss(self, reason: str) -> None:
        if self._outage.was_redirected:
            # A node that is redirected in a circle logs it only once.
            is_news = self._outage.redirects < 2
            _log.log(logging.INFO if is_news else logging.DEBUG, "redirected: %s", reason)
        elif reason != self._outage.told_loss:
            # A coordinator that refuses this node for now does so at each dial, for the same
            # reason.
            self._outage.told_loss = reason
            search = "searching for it; the workers keep running"
            if not self._state.has_workers:
                search = f"searching for it for up to {self.settings.coordinator_lost_after_s:g} s"
            _log.warning("the connection to the coordinator is lost: %s; %s", reason, search)

    async def _reconnect(self, reason: str) -> None:
        """Search until a coordinator answers, without a limit while the node's workers run.

        A node without running workers gives up after `coordinator_lost_after_s`. That time counts
        from when it was last attached or had workers, because a coordinator that answers may still
        refuse it.
        """
        lost_s = self._outage.lost_s or _now_s()
        self._attempts = Attempts(
            self.fixed.target if self.elected is None else self.settings.endpoint
        )
        try:
            # The searches keep the limit themselves, and then report what they tried. This timeout
            # is for a limit that is set while they wait.
            async with asyncio.timeout_at(self._latest_s()) as self.limit:
                await self._search(lost_s)
        except TimeoutError:
            problem = self.elected.problem if self.elected is not None else ""
            self._attempts.problem = self._attempts.problem or problem
            error = self.credentials.unreachable(self._attempts, _now_s() - lost_s)
            self._node.give_up(self._lost_error(error, reason))
        except errors.CoordinatorError as error:
            self._node.give_up(self._lost_error(error, reason))
        finally:
            self.limit = None
            self._reconnecting = None

    def _search_failed(self, error: Exception) -> None:
        """An unexpected error: without a search, the node would wait for ever."""
        _log.error("the search for the coordinator failed", exc_info=error)
        self._node.give_up(
            errors.CoordinatorLostError(
                f"the search for the coordinator of run {self.settings.run_id!r} failed: "
                f"{type(error).__name__}: {error}",
                hint="start this node again; the log has the traceback for a bug report",
            )
        )

    def _lost_error(
        self, error: errors.CoordinatorError, reason: str
    ) -> errors.CoordinatorLostError:
        return errors.CoordinatorLostError(
            f"the coordinator of run {self.settings.run_id!r} is lost ({reason}): {error.message}",
            hint=error.hint if self.elected is not None else _LOST_HINT,
        )

    def _ends_s(self) -> float:
        """When the search gives up; infinite while the node's workers run."""
        if self._state.has_workers:
            self._outage.idle_s = None
            return math.inf
        if self._outage.idle_s is None:
            self._outage.idle_s = _now_s()
        return self._outage.idle_s + self.settings.coordinator_lost_after_s

    def _latest_s(self) -> float | None:
        ends_s = self._ends_s()
        return None if math.isinf(ends_s) else ends_s + GIVE_UP_MARGIN_S

    def follow_workers(self) -> None:
        """Move the limit of the search after the node's workers have ended or begun again."""
        if self.limit is not None and not self.limit.expired():
            latest_s = self._latest_s()
            if latest_s != self.limit.when():
                self.limit.reschedule(latest_s)

    async def _search(self, lost_s: float) -> None:
        """Search. Raises a CoordinatorError if there is no coordinator in time, or never again."""
        if await self._follow_redirect():
            return
        if not (self._outage.was_let_in or self._outage.was_redirected):
            # The last coordinator refused this node. That may change, but not at once.
            await asyncio.sleep(self._outage.pauses.next_s())
        is_circle = self._outage.redirects > REDIRECTS_MAX
        if self.elected is not None:
            search = self.elected.search
            if is_circle:
                # Usually by its own candidate, until that has seen the owner's lease expire. A
                # search that begins now would read the ledger without a pause.
                search.again()
            else:
                search.begin(at_once=False)
            finding = self.elected.find(self._attempts, self._ends_s(), is_new=False)
            await self._use_found(finding, lost_s)
            return
        if is_circle:
            # The coordinator at this address waits itself. For example, a restarted `serve` waits
            # until it has seen its predecessor's lease expire.
            await asyncio.sleep(CIRCLE_S * runtime.here().chance.uniform(0.5, 1.0))
        await self._dial_until_found(lost_s)

    async def _dial_until_found(self, lost_s: float) -> None:
        attempts = self._attempts
        while True:
            limit_s = max(self._ends_s() - _now_s(), DIAL_MIN_S)
            connection = await self.credentials.dial(
                self.fixed.target, attempts, limit_s, Patience.ANY
            )
            left_s = self._ends_s() - _now_s()
            if connection is not None and left_s > 0:
                self._use(connection)
                return
            if connection is not None:
                connection.abort("too late")
            if left_s <= 0 or self._has_process_ended(attempts):
                raise self.credentials.unreachable(attempts, _now_s() - lost_s)
            await asyncio.sleep(min(self._outage.pauses.next_s(), left_s))

    def _has_process_ended(self, attempts: Attempts) -> bool:
        """Whether the process that kept the run in memory has ended.

        Its address has refused each connection for `coordinator_lost_after_s`, so nothing listens
        there. A process that is frozen or cut off does not refuse connections; it does not answer.
        """
        is_host = self.settings.endpoint.kind is EndpointKind.HOST
        if not (attempts.only_refused and (is_host or self._state.is_in_memory)):
            self._outage.refused_since_s = None
            return False
        now_s = _now_s()
        if self._outage.refused_since_s is None:
            self._outage.refused_since_s = now_s
        return now_s - self._outage.refused_since_s >= self.settings.coordinator_lost_after_s

    async def _follow_redirect(self) -> bool:
        """Dial the owner that a coordinator has named. Returns whether it answered."""
        addresses, self._redirected_to = self._redirected_to, ()
        attempts = Attempts(self.settings.endpoint)
        access = self.credentials.access
        connection = await dial_elected(addresses, access, attempts, ELECTED_DIAL_S)
        if connection is not None:
            self._use(connection)
        elif addresses:
            self._redirect_failed = attempts
        return connection is not None

    # -- a coordinator that does not renew its lease -----------------------------------------------

    def watch_lease(self, still_s: float) -> None:
        """Look for another coordinator if this one has not renewed its lease for `still_s` seconds.

        A coordinator that is cut off from the ledger keeps its nodes connected, but serves none of
        them.
        """
        if self.elected is None:
            return
        if still_s < self.owner_ttl_s or not self._state.is_attached:
            self._end_search_beside()
        elif self._beside is not None and not self._beside.done():
            return
        elif self.connection is not None and self._node.gone is None:
            work = self._search_beside(self.elected, self.connection)
            self._beside = runtime.spawn(work, self._search_beside_failed)

    async def _search_beside(self, elected: ElectedCoordinator, connection: Connection) -> None:
        """Search while connected. Renewal of the lease or loss of the connection cancels it."""
        better = await elected.find_better(Attempts(self.settings.endpoint), connection)
        if better is None:
            return
        _log.warning("the coordinator has not renewed its lease: connecting to %s", better.address)
        self._beside = None  # This is the task that ends here.
        self.connection = None
        connection.on_message = lambda data: None
        self._outage.lost_s = self._outage.lost_s or _now_s()
        self._node.disconnected()
        self._node.searching(self._outage.lost_s)
        self._use(better)
        connection.close("its lease was not renewed")

    def _search_beside_failed(self, error: Exception) -> None:
        """An unexpected error ends only this search: the node stays connected, and tries again."""
        _log.error("the search for a coordinator with a lease failed", exc_info=error)

    def _end_search_beside(self) -> None:
        beside, self._beside = self._beside, None
        if beside is not None:
            beside.cancel()

    # -- the end -----------------------------------------------------------------------------------

    async def hang_up(self) -> None:
        """End each search, and close the connection. Idempotent. If cancelled, it stops waiting."""
        self.is_closing = True
        beside, self._beside = self._beside, None
        searching = [task for task in (self._reconnecting, beside) if task is not None]
        for task in searching:
            task.cancel()
        if searching:
            await asyncio.wait(searching)
        connection, self.connection = self.connection, None
        self._node.disconnected()
        if connection is not None:
            connection.close("this node is leaving")
            try:
                await connection.wait_closed()
            except asyncio.CancelledError:
                connection.abort("this node is leaving")
                raise

    async def close_ledger(self) -> None:
        """Close the ledger when no coordinator of this node needs it any more."""
        await self.own.retired()
        if self.elected is not None:
            await self.elected.close_ledger()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
