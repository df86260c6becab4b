"""One node of a run in an asyncio event loop: the machine, its connection, and what waits for it.

This is what the agent, the blocking API and the async API stand on. It carries out the machine's
actions, keeps a connection open (or carries the coordinator itself), and turns what the machine is
told into results and errors for whoever waits. Every wait has a deadline and says what it was for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from rallypoint import errors, threads, tokens
from rallypoint._version import __version__
from rallypoint.client import machine as m
from rallypoint.client.dialing import (
    Attempts,
    Patience,
    Pauses,
    dial,
    dial_elected,
    dial_first,
    may_host,
    target_of,
)
from rallypoint.client.discovery import Over, Place, Search, Turn
from rallypoint.client.identity import (
    check_local_addr,
    node_info,
    own_address,
    own_address_of,
)
from rallypoint.client.transport import Connection
from rallypoint.core.addresses import OwnAddress, is_unspecified
from rallypoint.core.election import Seen
from rallypoint.core.reasons import Refusal, RefusalCode, Waiting
from rallypoint.core.store import ROUND_ENDED, TIMEOUT, StoreFailure, StoreOp
from rallypoint.core.values import (
    SECRET_BYTES,
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    Outcome,
    RoundHead,
    RoundMember,
    RunSettings,
    Seat,
)
from rallypoint.endpoints import is_loopback
from rallypoint.ledger.contract import Ledger
from rallypoint.net import describe_os_error, is_this_host
from rallypoint.settings import LOST_ORPHAN_S, EndpointKind, NodeSettings, check_own_token
from rallypoint.wire import messages as wire

if TYPE_CHECKING:
    from rallypoint.client.hosting import EmbeddedCoordinator

_log = logging.getLogger("rallypoint.client")

WHY_TIMEOUT_S: Final = 1.0
"""How long an error waits to be told why a round is not there yet."""
HOME_WITHIN_S: Final = 10.0
"""How long the file system of this user's home may take for the token that is there."""
LET_IN_S: Final = 5.0
"""How long a coordinator that was reached may take to let the node in, at least."""
DIAL_MIN_S: Final = 0.5
"""How long an address is given, however little time is left: else the error would say nothing."""
PROXY_READY_S: Final = 10.0
"""How long a node that comes for the first time bears a proxy's 404, 429 or 5xx, at most: who has
mistaken an address need not wait for `connect_timeout`."""
GIVE_UP_MARGIN_S: Final = 1.0
"""How much later than it should a search ends that cannot end itself."""
STANDBY_LOOK_S: Final = 1.0
"""How often, at most, a standby whose time is over looks whether a round is on without it."""
ASK_TIMEOUT_S: Final = 30.0
"""How long a question may take that waits for nothing."""
ANSWER_MARGIN_S: Final = 5.0
"""How much later than the coordinator this side gives up a call of the store."""
ELECTED_DIAL_S: Final = 2.0
"""How long an address of an elected coordinator is given: the next one may be elected meanwhile."""
MESSENGERS: Final = 16
"""How many nodes of a run, about, go to a replica each second while its coordinator does not
answer: enough that some of them live if most nodes are dead."""
REDIRECTS_MAX: Final = 3
"""How often a node goes where it is sent before it looks for itself."""
WORTH_TELLING_S: Final = 0.1
"""Without a coordinator for less, a node was only sent from one to the other."""
OTHER_RUN_S: Final = 1.0
"""How long a node waits, at most, before it asks a coordinator that has another run once more."""
CIRCLE_S: Final = 0.5
"""How long it waits, at most, each time that it is sent on after that."""
_LOST_HINT: Final = (
    "the run ends with its coordinator's process; start it again, use `rallypoint serve` on a "
    "machine that stays, or an etcd:// or file:/// endpoint"
)


class Round(msgspec.Struct, frozen=True):
    """A round and this node's seat in it."""

    head: RoundHead
    seat: Seat


class Node:
    """One node. All methods are for the event loop in which `open` was called.

    `on_ended`, `on_closed`, `on_gone` are called from the loop when the round ends (again, when
    its cause becomes known), when the run is closed, and when nothing can come any more because
    the coordinator refused the node or is lost.

    `ledger`: the endpoint's, if that is a ledger and the caller has opened it and will close it.
    """

    def __init__(
        self,
        settings: NodeSettings,
        run: RunSettings,
        *,
        workers: int = 1,
        ledger: Ledger | None = None,
    ) -> None:
        self.settings = settings
        self.run = run
        self.info = node_info(settings, workers)
        self.on_ended: Callable[[Change], None] = lambda change: None
        self.on_closed: Callable[[CloseRecord], None] = lambda close: None
        self.on_gone: Callable[[errors.CoordinatorError], None] = lambda error: None
        self.on_standby: Callable[[], None] = lambda: None
        self.hosted: EmbeddedCoordinator | None = None
        self._machine = m.NodeMachine(
            settings.run_id,
            self.info,
            run,
            silence_s=settings.coordinator_silence_s,
            software=f"rallypoint {__version__}",
            is_elected=settings.endpoint.kind is EndpointKind.LEDGER,
            resume_secret=secrets.token_bytes(SECRET_BYTES),
        )
        self._keys = tokens.Keys(tokens.NONE)
        self._shown: tokens.KnownToken | None = None
        """What was shown last, if that is not in `_keys`: a lease told it."""
        self._has_told_open = False
        self._ledger = ledger
        self._opened_ledger: Ledger | None = None
        self._search: Search | None = None
        self.own_address: OwnAddress | None = None
        """Where other machines reach this one, if that was looked for and found."""
        self._is_named_here = False
        """Whether the endpoint's host is this machine, as the other nodes name it."""
        self._sent_to: tuple[Address, ...] = ()
        self._sent_on: Attempts | None = None
        self._redirects = 0
        self._was_sent_away = False
        self._was_messenger = False
        self._told_loss = ""
        """The reason that was logged last for the loss of a coordinator, until one is found."""
        self._retiring: set[asyncio.Task[None]] = set()
        self._orphan: asyncio.TimerHandle | None = None
        self._attempts = Attempts(settings.endpoint)
        self._is_coming = False
        self._other_run: Refusal | None = None
        """The last refusal of a coordinator that has another run, while this node comes."""
        self._was_turned_away = False
        self._is_starting_host = False
        self._ends_s: float | None = None
        """When what the node waits for now is given up."""
        self._limit: asyncio.Timeout | None = None
        self._idle_s: float | None = None
        self._refuses_since_s: float | None = None
        self._pauses = Pauses()
        self._was_let_in = True
        self._beside: asyncio.Task[None] | None = None
        self._owner_ttl_s = settings.lease_ttl_s
        self._gone: errors.CoordinatorError | None = None
        self._connection: Connection | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._tick_due_s = 0.0
        self._results: dict[int, asyncio.Future[object]] = {}
        self._changed: list[asyncio.Future[None]] = []
        self._is_closing = False
        self._lost_s: float | None = None
        self._taken = 0

    # -- what is known -------------------------------------------------------------------------

    @property
    def change(self) -> Change | None:
        """Why the node's last round ended; None while it is on."""
        return self._machine.ended

    @property
    def round(self) -> Round | None:
        """The last round that the node had a seat in."""
        head, seat = self._machine.head, self._machine.seat
        return Round(head, seat) if head is not None and seat is not None else None

    @property
    def closed(self) -> CloseRecord | None:
        """How the run ended; None while it is on."""
        return self._machine.closed

    @property
    def gone(self) -> errors.CoordinatorError | None:
        """Why nothing can come any more: refused, superseded, or the coordinator is lost."""
        return self._gone

    @property
    def is_connected(self) -> bool:
        """Whether the coordinator has this node attached now."""
        return self._machine.is_attached

    @property
    def looking(self) -> str:
        """What keeps this node from a coordinator; "" if it has one, or is starting it."""
        if self.is_connected:
            return ""
        if self._is_coming and (self._is_starting_host or self._carries_only_one):
            return ""  # It starts the coordinator itself, and waits for nobody.
        tried = self._attempts.listed() or self._attempts.doing
        if self._other_run is not None and not self._attempts.answers:
            return self._at_another_run(self._other_run)
        silent = f"the coordinator at {self.settings.endpoint} does not answer"
        return self.ledger_problem or (f"{silent} ({tried})" if tried else silent)

    @property
    def carries_run(self) -> bool:
        """Whether the run of several nodes ends with this one: it carries the only coordinator."""
        return self._carries_only_one and self.run.max_nodes > 1

    @property
    def _carries_only_one(self) -> bool:
        """Whether it carries the coordinator, and no other node could."""
        return self.hosted is not None and self._search is None

    @property
    def nodes_max(self) -> int:
        """How many nodes a round of the run may have."""
        return self.run.max_nodes

    @property
    def left_s(self) -> float | None:
        """How long the node still waits for what it waits for now, in seconds; None: for ever."""
        ends_s = math.inf if self._ends_s is None else self._ends_s
        if self._reconnecting is not None and self._idle_s is not None:
            ends_s = min(ends_s, self._idle_s + self.settings.coordinator_lost_after_s)
        return None if math.isinf(ends_s) else max(0.0, ends_s - self._now_s())

    @property
    def ledger_problem(self) -> str:
        """Since when the ledger cannot be used, and what it says; "" while it can."""
        search = self._search
        if search is None:
            return ""
        not_yet = f"{self.settings.endpoint} has not answered yet"
        return search.problem or ("" if search.ledger.ledger_id else not_yet)

    @property
    def bootstrap_host(self) -> str:
        """An address of this machine that the other nodes can reach."""
        if self.settings.local_addr:
            return self.settings.local_addr
        if self.hosted is not None and self._is_named_here:
            return self.settings.endpoint.host  # as the others were given it
        host = self._connection.local_host if self._connection else "127.0.0.1"
        # Whoever is on the coordinator's own machine may come by loopback.
        return self._advertised_host if is_loopback(host) else host

    async def _find_own_address(self) -> None:
        """For an endpoint where other machines may come, find where they reach this one."""
        endpoint = self.settings.endpoint
        is_named = endpoint.kind is EndpointKind.HOST and not is_unspecified(endpoint.host)
        self._is_named_here = (is_named and self.hosted is not None) and (
            self.settings.host_coordinator != "yes"  # then it was looked at before
            or await asyncio.to_thread(is_this_host, endpoint.host)
        )
        if self.settings.local_addr:
            self.own_address = own_address_of(self.settings.local_addr)
        elif endpoint.kind is not EndpointKind.LOCAL and not is_loopback(endpoint.host):
            connection = self._connection
            if connection is not None and not is_loopback(connection.local_host):
                self.own_address = own_address_of(connection.local_host)
            else:
                self.own_address = await own_address(endpoint)
            if self.own_address is None and self.run.max_nodes > 1:
                _log.warning(
                    "this machine has no address but loopback, so that nodes on others cannot "
                    "reach it (--local-addr says where they can)"
                )

    # -- coming --------------------------------------------------------------------------------

    async def open(self) -> None:
        """Find the coordinator, or become it, and attach.

        Raises UnreachableError after `connect_timeout_s`, UsageError for a token that cannot be had
        or is too weak for a coordinator in this node, and any RefusedError, NotACoordinatorError or
        LedgerError at once (LedgerUnreachableError after that time).
        Cancelling it, or an error, leaves nothing open.
        """
        check_own_token(self.settings)
        await check_local_addr(self.settings, self.run.max_nodes)
        self._keys = await self._find_token()
        limit_s = self.settings.connect_timeout_s
        began_s = self._now_s()
        self._is_coming, self._ends_s = True, began_s + limit_s
        try:
            if self.settings.endpoint.kind is EndpointKind.LOCAL:
                await self._host_for_itself()
            if self.settings.endpoint.kind is EndpointKind.LEDGER:
                await self._connect_to_elected(began_s + limit_s)
            else:
                await self._connect(began_s + limit_s)
                await self._find_own_address()
            await self._until_let_in(began_s + limit_s)
            if not self.is_connected and self.closed is None:
                raise self._not_let_in(self._now_s() - began_s)
        except BaseException:
            await self.aclose(linger=False)
            raise
        finally:
            self._is_coming, self._ends_s, self._other_run = False, None, None

    async def _until_let_in(self, ends_s: float) -> None:
        """Wait for the coordinator's answer. One that has another run may be about to end."""
        while True:
            left_s = max(ends_s - self._now_s(), LET_IN_S)
            await self._until(lambda: self.is_connected or self._was_turned_away, left_s)
            if self._other_run is None or not self._was_turned_away:
                return
            left_s = ends_s - self._now_s()
            if left_s <= 0:
                message = self._at_another_run(self._other_run)
                raise errors.refused(msgspec.structs.replace(self._other_run, message=message))
            await asyncio.sleep(min(left_s, OTHER_RUN_S * random.uniform(0.5, 1.0)))
            self._was_turned_away = False
            try:
                await self._connect(ends_s)
            except errors.UnreachableError as error:
                error.hint = f"before, {self._at_another_run(self._other_run)}; {error.hint}"
                raise

    def _at_another_run(self, refusal: Refusal) -> str:
        where, own = self.settings.endpoint, self.settings.run_id
        if not refusal.run_id:  # of a release that does not tell it by itself
            return f"at {where}: {refusal.message}"
        return f"the coordinator at {where} runs {refusal.run_id!r}; this node asked for {own!r}"

    async def _find_token(self) -> tokens.Keys:
        """See `tokens`. In a thread where it is in a file: a home may be on a server that hangs."""
        node = self.settings
        if node.token or node.insecure or node.endpoint.kind is not EndpointKind.HOST:
            return tokens.Keys.of_node(node)
        try:
            return await threads.await_within(HOME_WITHIN_S, lambda: tokens.Keys.of_node(node))
        except TimeoutError:
            raise errors.UsageError(
                f"{tokens.SHOWN} could not be read within {HOME_WITHIN_S:g} s",
                hint=f"does its file server hang? Else {tokens.EXPORT_LINE}",
            ) from None

    async def _dial(
        self, attempts: Attempts, limit_s: float, patience: Patience
    ) -> Connection | None:
        """As `dial`, with this node's token, or with the home's if that is the one asked for.

        Raises TokenError with both tokens named.
        """
        while True:
            refused: errors.TokenError | None
            try:
                connection = await dial(
                    self._target(), self._keys.token, attempts, limit_s, patience
                )
                refused = attempts.refused if connection is None else None
            except errors.TokenError as error:
                connection, refused = None, error
            if refused is None or not await self._takes_home(refused):
                break
        if refused is not None and patience is not Patience.ANY:
            raise self._keys.explained(refused) from None
        return connection

    def _nobody(self, attempts: Attempts, tried_s: float) -> errors.CoordinatorError:
        """The error of a search in vain. It names the tokens if one was the reason."""
        error = attempts.error(tried_s)
        if attempts.refused is None or not isinstance(error, errors.UnreachableError):
            return error
        own = self._shown or self._keys.known
        return errors.UnreachableError(
            f"{error.message}: {tokens.compared(attempts.refused, own)}",
            hint=tokens.what_to_do(attempts.refused, own),
            attempts=error.attempts,
        )

    async def _takes_home(self, refused: errors.TokenError) -> bool:
        if not self._keys.needs_look:
            return False
        try:
            return await threads.await_within(HOME_WITHIN_S, lambda: self._keys.takes_home(refused))
        except TimeoutError:
            return False

    def _not_let_in(self, tried_s: float) -> errors.UnreachableError:
        text = f"{self.settings.endpoint} was reached, but did not let this node in within"
        if self._sent_on is None:
            hint = "the coordinator may be stopped or overloaded"
            return errors.UnreachableError(f"{text} {tried_s:.1f} s", hint=hint)
        # Most often by its own candidate: the one that was elected gave an address of no use here.
        return errors.UnreachableError(
            f"{text} {tried_s:.1f} s: the coordinator cannot be reached from here "
            f"({self._sent_on.listed()})",
            hint="the node that carries it gave that address: its --local-addr, or else its own",
        )

    async def _connect(self, ends_s: float) -> None:
        """Dial until somebody answers; if that is nobody, and this the host, be it."""
        began_s = self._now_s()
        attempts, pauses = Attempts(self._target()), Pauses()
        self._attempts = attempts
        may_be_host: bool | None = None if self.hosted is None else False
        # Whoever listens at host:port is the coordinator itself; http:// may be a proxy's address.
        is_direct = self.settings.endpoint.kind is EndpointKind.HOST
        patience = Patience.NONE if is_direct else Patience.PROXY
        while True:
            left_s = ends_s - self._now_s()
            connection = await self._dial(attempts, max(left_s, DIAL_MIN_S), patience)
            if connection is not None:
                self._use(connection)
                return
            if attempts.stranger is not None and not pauses.is_used:
                _log.warning("%s: waiting for a coordinator", attempts.stranger.message)
            if may_be_host is None:
                may_be_host = await may_host(self.settings)
            if may_be_host and (attempts.only_refused or attempts.unresolved):
                may_be_host = not await self._host(attempts)
                if not may_be_host:
                    continue
            is_too_long = self._now_s() - began_s >= PROXY_READY_S
            left_s = ends_s - self._now_s()
            if left_s <= 0 or (attempts.stranger is not None and is_too_long):
                raise self._nobody(attempts, self._now_s() - began_s)
            await asyncio.sleep(min(pauses.next_s(), left_s))

    # -- a coordinator that is elected -----------------------------------------------------------

    async def _connect_to_elected(self, ends_s: float) -> None:
        """Open the ledger, and find the run's coordinator through it, or become it."""
        from rallypoint.ledger.open import CALL_TIMEOUT_S, open_ledger

        ledger = self._ledger
        if ledger is None:
            # Less than there is time for: what gives up by itself can say what it has tried.
            call_timeout_s = min(CALL_TIMEOUT_S, max(0.4, 0.8 * self.settings.connect_timeout_s))
            ledger = open_ledger(
                self.settings.endpoint,
                self.settings.etcd_password,
                call_timeout_s=call_timeout_s,
            )
            self._opened_ledger = ledger
        nodes = self.run.expected_nodes or self.run.min_nodes
        self._search = Search(self.settings, self.info.name, ledger, nodes)
        await self._search.open(ends_s)
        await self._find_own_address()
        self._search.begin(at_once=False, is_new=True)
        attempts, began_s = self._attempts, self._now_s()
        if not await self._find_elected(self._search, attempts, ends_s) and self._gone is None:
            raise self._nobody(attempts, self._now_s() - began_s)

    async def _find_elected(self, search: Search, attempts: Attempts, ends_s: float) -> bool:
        """Look until there is a connection or the run is over; False at `ends_s`.

        Raises the ledger's error if this node never was in the run and waiting cannot mend it.
        """
        while True:
            sight = await search.next(ends_s, is_new=self._lost_s is None)
            attempts.problem = search.problem
            if self._has_learned(search):
                return True
            if isinstance(sight, Over):
                self._act(self._machine.found_closed(sight.close))
                return True
            if sight is not None:
                connection = await self._go(search, sight, attempts)
                if connection is not None:
                    self._use(connection)
                    return True
            if self._now_s() >= ends_s:
                return False

    def _has_learned(self, search: Search) -> bool:
        """Note what the ledger says of terms. Whether the run is lost with the ledger it was in."""
        known = self._machine.stamp.ledger_id
        is_other = bool(known) and search.floor.ledger_id not in ("", known)
        if is_other or (known and isinstance(search.error, errors.LedgerReplacedError)):
            self._act(self._machine.found_replaced())
            return True
        self._machine.found_term(search.floor)
        return False

    async def _go(
        self, search: Search, sight: Place | Turn, attempts: Attempts
    ) -> Connection | None:
        """To the coordinator that was seen, or to the next that can be it."""
        if isinstance(sight, Place):
            connection = await self._dial_place(sight, attempts)
            if connection is not None:
                return connection
            if search.again() and self.hosted is None:
                await self._stand(search, attempts, None)
            # It may be dead. A `rallypoint serve` may take the run only after it has seen the lease
            # stand still itself, so some nodes go there now: few, as a living one sends them back.
            if self._was_messenger or random.random() * search.nodes >= MESSENGERS:
                return None
            self._was_messenger = True
            return await self._dial_replicas(search, attempts, sight.process)
        connection = await self._dial_replicas(search, attempts, "")
        if connection is None and await self._stand(search, attempts, sight.seen):
            connection = await self._dial_own(attempts)
        return connection

    async def _dial_place(self, place: Place, attempts: Attempts) -> Connection | None:
        if self.hosted is not None and place.process == self.hosted.process:
            return await self._dial_own(attempts)
        token = self.settings.token or place.token
        if place.token and not self.settings.token:
            self._shown = tokens.KnownToken(token, tokens.Origin.LEASE, "the coordinator's lease")
        self._owner_ttl_s = place.ttl_s or self.settings.lease_ttl_s
        return await dial_elected(place.addresses, token, attempts, ELECTED_DIAL_S)

    async def _dial_own(self, attempts: Attempts) -> Connection | None:
        if self.hosted is None:
            return None
        own = (self.hosted.address,)
        return await dial_elected(own, self.hosted.token, attempts, ELECTED_DIAL_S)

    async def _dial_replicas(
        self, search: Search, attempts: Attempts, but: str
    ) -> Connection | None:
        """One of the `rallypoint serve` that share the ledger."""
        places = [each for each in await search.replicas() if each.process != but]
        own = self.settings.token
        self._owner_ttl_s = max([each.ttl_s for each in places], default=self._owner_ttl_s)
        dialled = [(each.addresses, own or each.token) for each in places]
        return await dial_first(dialled, attempts, ELECTED_DIAL_S)

    async def _stand(self, search: Search, attempts: Attempts, seen: Seen | None) -> bool:
        """Be a candidate. False if that cannot be."""
        if self.settings.host_coordinator == "no":
            return False
        if self.hosted is not None:
            self.hosted.claim(seen)
            return True
        from rallypoint.client.hosting import EmbeddedCoordinator

        try:
            self.hosted = await EmbeddedCoordinator.stand(
                self.settings, self.info.id, search.ledger, self._advertised_host, seen
            )
        except (OSError, errors.LedgerError) as error:
            attempts.not_hosting = describe_os_error(error)
            return False
        own = str(self.own_address or "loopback alone")
        where, run_id = self.hosted.advertised, self.settings.run_id
        _log.info("this node stands as coordinator of run %s, at %s (%s)", run_id, where, own)
        return True

    @property
    def _advertised_host(self) -> str:
        return self.own_address.host if self.own_address is not None else "127.0.0.1"

    def _retire(self) -> None:
        """Another coordinator has the run: what this node has started for it can go."""
        hosted, self.hosted = self.hosted, None
        if hosted is not None:
            task = asyncio.get_running_loop().create_task(hosted.aclose())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _is_at_own(self) -> bool:
        hosted, connection = self.hosted, self._connection
        if hosted is None or connection is None:
            return False
        return connection.address in (hosted.address, hosted.advertised)

    def _target(self) -> Address:
        """Where to dial: whoever carries the coordinator reaches it without any name."""
        return self.hosted.address if self.hosted else target_of(self.settings)

    async def _host(self, attempts: Attempts) -> bool:
        """Become the coordinator. False if that cannot be: most often, another node has."""
        target = self._target()
        self._is_starting_host = True
        try:
            await self._start_hosting(target.host, target.port)
        except OSError as error:
            attempts.not_hosting = describe_os_error(error)
            return False
        finally:
            self._is_starting_host = False
        return True

    async def _host_for_itself(self) -> None:
        try:
            await self._start_hosting("127.0.0.1", 0)
        except OSError as error:
            why = describe_os_error(error)
            raise errors.UnreachableError(f"cannot listen on this machine: {why}") from error

    async def _start_hosting(self, host: str, port: int) -> None:
        from rallypoint.client.hosting import EmbeddedCoordinator

        self.hosted = await EmbeddedCoordinator.start(
            self.settings.run_id,
            self._keys.token,
            host,
            port,
            insecure=self.settings.insecure,
            token_origin=self._keys.known.origin,
        )

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        self._was_let_in = False
        self._tell_if_open(connection)
        connection.on_message = self._received
        connection.on_closed = lambda reason: self._lost(connection, reason)
        self._act(self._machine.connected(self._now_s(), connection.source))

    def _tell_if_open(self, connection: Connection) -> None:
        """A token was given, and the coordinator lets everybody in: somebody may not know it."""
        is_given = self._keys.known.origin == tokens.Origin.GIVEN
        is_wanted = is_given or not is_loopback(connection.address.host)
        if not (connection.asks_no_token and self._keys.token and is_wanted):
            return
        if not self._has_told_open:
            self._has_told_open = True
            _log.warning(
                "the coordinator at %s asks for no token: whoever reaches it can join run %r and "
                "end it (this node's token is from %s)",
                connection.address,
                self.settings.run_id,
                self._keys.known.place,
            )

    # -- losing and finding the coordinator again ----------------------------------------------

    def _lost(self, connection: Connection, reason: str) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._machine.disconnected()
        self._schedule_tick()
        self._end_look_beside()
        if self._is_closing or self._machine.is_over or self._gone is not None:
            self._notify()
        elif self._has_heard_goodbye(connection):
            self._give_up(errors.CoordinatorLostError("this node has left the run"))
        elif self._reconnecting is None:
            if self._was_sent_away:
                # Sent round in circles it is sent again and again, which is news only once.
                is_news = self._redirects < 2
                _log.log(logging.INFO if is_news else logging.DEBUG, "sent away: %s", reason)
            elif reason != self._told_loss:
                # One that refuses this node for now does so each time, for the same reason.
                self._told_loss = reason
                _log.warning("the connection to the coordinator is lost: %s", reason)
            self._lost_s = self._lost_s or self._now_s()
            self._watch_orphanhood(self._lost_s)
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect(reason))

    def _has_heard_goodbye(self, connection: Connection) -> bool:
        """Whether the coordinator has heard that this node leaves, and is still the run's."""
        said = self._machine.desired is m.DesiredState.GONE
        return said and connection.was_closed_by_peer and not self._was_sent_away

    async def _reconnect(self, reason: str) -> None:
        """Dial until somebody answers, without a limit while the node's workers run.

        A node without running workers gives up after `coordinator_lost_after_s`. That time begins
        when it was last attached or had workers: to be answered is not to be let in.
        """
        lost_s = self._lost_s or self._now_s()
        target = self._target() if self._search is None else self.settings.endpoint
        self._attempts = Attempts(target)
        try:
            # The loops keep to the time themselves, and can say what they have tried. This is for
            # a time that begins while they wait.
            async with asyncio.timeout_at(self._latest_s()) as self._limit:
                await self._find_coordinator(lost_s)
        except TimeoutError:
            problem = self._search.problem if self._search is not None else ""
            self._attempts.problem = self._attempts.problem or problem
            error = self._nobody(self._attempts, self._now_s() - lost_s)
            self._give_up(self._lost_error(error, reason))
        except errors.CoordinatorError as error:
            self._give_up(self._lost_error(error, reason))
        finally:
            self._limit = None
            self._reconnecting = None

    def _given_up_s(self) -> float:
        """Until when a coordinator is looked for; infinite while the node's workers run."""
        if self._machine.has_workers:
            self._idle_s = None
            return math.inf
        if self._idle_s is None:
            self._idle_s = self._now_s()
        return self._idle_s + self.settings.coordinator_lost_after_s

    def _latest_s(self) -> float | None:
        given_up_s = self._given_up_s()
        return None if math.isinf(given_up_s) else given_up_s + GIVE_UP_MARGIN_S

    async def _find_coordinator(self, lost_s: float) -> None:
        """Raises a CoordinatorError if there is none in time, or never again."""
        if await self._go_where_told():
            return
        if not (self._was_let_in or self._was_sent_away):
            # What was reached last did not let this node in: a refusal may pass, but not at once.
            await asyncio.sleep(self._pauses.next_s())
        if self._search is not None:
            await self._find_again(self._search, lost_s)
            return
        attempts = self._attempts
        if self._redirects > REDIRECTS_MAX:
            # What answers here waits itself, as a `serve` that was started again does until
            # the lease of its predecessor has stood still for long enough.
            await asyncio.sleep(CIRCLE_S * random.uniform(0.5, 1.0))
        while True:
            left_s = self._given_up_s() - self._now_s()
            connection = await self._dial(attempts, max(left_s, DIAL_MIN_S), Patience.ANY)
            left_s = self._given_up_s() - self._now_s()
            if connection is not None and left_s > 0:
                self._use(connection)
                return
            if connection is not None:
                connection.abort("too late")
            if left_s <= 0 or self._is_process_gone(attempts):
                raise self._nobody(attempts, self._now_s() - lost_s)
            await asyncio.sleep(min(self._pauses.next_s(), left_s))

    def _is_process_gone(self, attempts: Attempts) -> bool:
        """Whether the process that kept the run in memory has ended.

        Its address has refused connections for `coordinator_lost_after_s`, each time that it was
        dialled: nothing listens there. One that is frozen or cut off answers nothing instead.
        """
        is_in_memory = (
            self._machine.is_in_memory or self.settings.endpoint.kind is EndpointKind.HOST
        )
        if not (attempts.only_refused and is_in_memory):
            self._refuses_since_s = None
            return False
        now_s = self._now_s()
        if self._refuses_since_s is None:
            self._refuses_since_s = now_s
        return now_s - self._refuses_since_s >= self.settings.coordinator_lost_after_s

    async def _go_where_told(self) -> bool:
        """A coordinator that has not the run has said who has."""
        told, self._sent_to = self._sent_to, ()
        attempts = Attempts(self.settings.endpoint)
        connection = await dial_elected(told, self._keys.token, attempts, ELECTED_DIAL_S)
        if connection is not None:
            self._use(connection)
        elif told:
            self._sent_on = attempts
        return connection is not None

    async def _find_again(self, search: Search, lost_s: float) -> None:
        if self._redirects > REDIRECTS_MAX:
            # Sent round in circles, most often by its own candidate, until the owner's lease has
            # stood still for long enough: looking at once would ask the ledger without a pause.
            search.again()
        else:
            search.begin(at_once=False)
        if not await self._find_elected(search, self._attempts, self._given_up_s()):
            raise self._nobody(self._attempts, self._now_s() - lost_s)

    # -- a coordinator that does not renew its lease ---------------------------------------------

    def _watch_lease(self) -> None:
        """A coordinator that is cut off from the ledger keeps its nodes and serves none."""
        is_renewed = self._machine.beat_stood_still_s < self._owner_ttl_s
        if is_renewed or not self.is_connected:
            self._end_look_beside()
        elif self._beside is not None and not self._beside.done():
            return
        elif self._search is not None and self._connection is not None and self._gone is None:
            work = self._look_beside(self._search, self._connection)
            self._beside = asyncio.get_running_loop().create_task(work)

    def _end_look_beside(self) -> None:
        beside, self._beside = self._beside, None
        if beside is not None:
            beside.cancel()

    async def _look_beside(self, search: Search, connection: Connection) -> None:
        """Search the ledger beside a connection, and leave that only for something better.

        That is another owner, a replica that can be one, or the node's own candidate. As long as
        the ledger does not answer here either, there is nothing better. Cancelled when the beat
        goes on, and when the connection is lost.
        """
        attempts = Attempts(self.settings.endpoint)
        search.begin(at_once=False)
        while True:
            sight = await search.next(math.inf)
            if self._has_learned(search):
                return
            if isinstance(sight, Over):
                self._act(self._machine.found_closed(sight.close))
                return
            if sight is None or (isinstance(sight, Place) and self._is_at(sight, connection)):
                search.again()
                continue
            better = await self._go(search, sight, attempts)
            if better is not None:
                self._move_to(better, connection)
                return

    def _is_at(self, place: Place, connection: Connection) -> bool:
        is_own = self.hosted is not None and place.process == self.hosted.process
        return connection.target in place.addresses or (is_own and self._is_at_own())

    def _move_to(self, better: Connection, connection: Connection) -> None:
        _log.warning("the coordinator has not renewed its lease: going to %s", better.address)
        self._beside = None  # This task: it ends here.
        self._connection = None
        connection.on_message = lambda data: None
        self._lost_s = self._lost_s or self._now_s()
        self._watch_orphanhood(self._lost_s)
        self._machine.disconnected()
        self._use(better)
        connection.close("its lease was not renewed")

    def _watch_orphanhood(self, lost_s: float) -> None:
        """R13: a node that nobody can reach may be superseded, and cannot know."""
        orphan_s = self.settings.orphan_s
        if orphan_s is not None:
            self._end_round_at(lost_s + orphan_s)

    def _watch_lost_run(self) -> None:
        """R13: the other nodes of a run that is lost may begin it anew, and this one cannot know.

        A node that is alone in its round has nobody to come into conflict with.
        """
        head = self._machine.head
        if self.settings.orphan_s is None and head is not None and head.nodes > 1:
            self._end_round_at(self._now_s() + LOST_ORPHAN_S)

    def _end_round_at(self, when_s: float) -> None:
        if self._orphan is None and not math.isinf(when_s):
            self._orphan = asyncio.get_running_loop().call_at(when_s, self._on_orphaned)

    def _on_orphaned(self) -> None:
        if not self.is_connected:
            alone_s = self._now_s() - (self._lost_s or self._now_s())
            self._act(self._machine.orphaned(alone_s))

    def _found_again(self) -> None:
        if self._lost_s is not None:
            away_s = self._now_s() - self._lost_s
            level = logging.WARNING if away_s > WORTH_TELLING_S else logging.DEBUG
            _log.log(level, "attached, after %.1f s without a coordinator", away_s)
        self._lost_s = self._idle_s = self._refuses_since_s = None
        self._redirects, self._was_sent_away, self._was_messenger = 0, False, False
        self._told_loss = ""
        self._was_let_in, self._pauses = True, Pauses()
        if self._orphan is not None:
            self._orphan.cancel()
            self._orphan = None

    def _lost_error(
        self, error: errors.CoordinatorError, reason: str
    ) -> errors.CoordinatorLostError:
        return errors.CoordinatorLostError(
            f"the coordinator of run {self.settings.run_id!r} is lost ({reason}): {error.message}",
            hint=error.hint if self._search is not None else _LOST_HINT,
        )

    def _give_up(self, error: errors.CoordinatorError) -> None:
        self._gone = error
        if isinstance(error, errors.RunLostError | errors.CoordinatorLostError):
            self._watch_lost_run()
        self._fail_results(error)
        self.on_gone(error)
        self._notify()

    # -- messages and ticks --------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        try:
            message = wire.decode_from_coordinator(data)
        except wire.MalformedError as error:
            if self._connection is not None:
                self._connection.abort(f"it sent what is no message: {error}")
            return
        self._act(self._machine.received(message, self._now_s()))
        self._watch_lease()

    def _act(self, actions: list[m.Action]) -> None:
        for action in actions:
            _DO[type(action)](self, action)
        self._schedule_tick()
        is_limited = self._limit is not None and not self._limit.expired()
        if (
            self._limit is not None
            and is_limited
            and (when_s := self._latest_s()) != self._limit.when()
        ):
            self._limit.reschedule(when_s)  # Its workers have ended, or begun again.

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _schedule_tick(self) -> None:
        due_s = self._machine.next_tick_s()
        # The handle is not asked: uvloop's for a time that has come does not know it.
        if self._tick is not None and self._tick_due_s != due_s:
            self._tick.cancel()
            self._tick = None
        if due_s is not None and self._tick is None:
            self._tick = asyncio.get_running_loop().call_at(due_s, self._on_tick)
            self._tick_due_s = due_s

    def _on_tick(self) -> None:
        self._tick = None
        self._act(self._machine.tick(self._now_s()))
        orphan_s = self.settings.orphan_s
        if orphan_s is not None and self.is_connected:
            # A coordinator that is cut off from its ledger cannot know whether it still is one.
            unled_s = self._now_s() - self._machine.led_s
            if unled_s > orphan_s:
                self._act(self._machine.orphaned(unled_s))

    def _send(self, action: m.Send) -> None:
        if self._connection is not None:
            self._connection.send(wire.encode(action.message))

    def _drop(self, action: m.Drop) -> None:
        self._was_sent_away = False
        if self._connection is not None:
            self._connection.abort(action.reason)

    def _attached(self, action: m.Attached) -> None:
        self._found_again()
        if self._search is not None and not self._is_at_own():
            self._retire()
        self._notify()

    def _round_formed(self, action: m.RoundFormed) -> None:
        self._notify()

    def _round_ended(self, action: m.RoundEnded) -> None:
        broken = errors.RoundBrokenError(action.change)
        for request_id in [i for i in self._results if not self._machine.is_open(i)]:
            self._fail(request_id, broken)
        self.on_ended(action.change)
        self._notify()

    def _run_ended(self, action: m.RunEnded) -> None:
        self.on_closed(action.close)
        self._notify()

    def _was_refused(self, action: m.WasRefused) -> None:
        if action.refusal.code is RefusalCode.OTHER_RUN and self._is_coming:
            self._turned_away(action.refusal)
            return
        self._give_up(errors.refused(action.refusal))

    def _turned_away(self, refusal: Refusal) -> None:
        """Let go of a coordinator that has another run; `open` tries again."""
        connection, self._connection = self._connection, None
        self._machine.comes_again()
        self._machine.disconnected()
        if connection is not None:
            connection.abort(refusal.message)
        self._other_run, self._was_turned_away = refusal, True
        self._notify()

    def _sent_away(self, action: m.SentAway) -> None:
        self._sent_to = action.addresses if self._redirects < REDIRECTS_MAX else ()
        self._redirects += 1
        self._was_sent_away = True
        if self._connection is not None:
            self._connection.abort(action.reason)

    def _call_answered(self, action: m.CallAnswered) -> None:
        self._resolve(action.request_id, action.result)

    def _told(self, action: m.MembersTold | m.WaitingTold) -> None:
        self._resolve(action.request_id, action)

    def _on_standby(self, action: m.PlacedOnStandby) -> None:
        self.on_standby()

    # -- rounds --------------------------------------------------------------------------------

    async def next_round(
        self,
        bootstrap: Address,
        *,
        workers: int | None = None,
        timeout_s: float | None = None,
        whole_s: float | None = None,
    ) -> Round | None:
        """Be ready, and wait for the next round. None if the run was closed instead.

        Leaves the round the node is in, which breaks it for all. A round that was formed when
        nobody waited any more (an earlier call timed out or was cancelled) is taken if it is still
        on. `timeout_s` None: the settings' `join_timeout_s`. A standby has no deadline while the
        round is on without it. `whole_s`: what `timeout_s` is the rest of, for the error.

        Raises JoinTimeoutError, RefusedError or CoordinatorLostError.
        """
        limit_s = self.settings.join_timeout_s if timeout_s is None else timeout_s
        self._ends_s = self._now_s() + limit_s
        if not (self._has_untaken_round() and self.change is None):
            self._taken = self._machine.number
            count = workers if workers is not None else self.info.workers
            self._act(self._machine.ready(bootstrap, count))
        try:
            await self._until_round(limit_s, limit_s if whole_s is None else whole_s)
        finally:
            self._ends_s = None
        if not self._has_untaken_round():
            return None
        self._taken = self._machine.number
        return self.round

    async def _until_round(self, limit_s: float, whole_s: float) -> None:
        """Wait for a round or the end of the run. Raises as `next_round`."""
        while True:
            await self._until(self._has_untaken_round, limit_s)
            if self._has_untaken_round() or self.closed is not None:
                return
            has_answered, waiting = await self._why_waiting()
            # While the ledger is away, the round that is on goes on without a standby, too.
            is_round_on = has_answered and (waiting is None or bool(waiting.suspended))
            is_on_standby = self._machine.is_standby and is_round_on
            if not is_on_standby and not self._has_untaken_round():
                raise self._join_timeout(whole_s, waiting)
            limit_s = max(limit_s, STANDBY_LOOK_S)
            self._ends_s = None  # Nobody needs it: it waits for as long as that is so.

    def _has_untaken_round(self) -> bool:
        return self._machine.number > self._taken

    def _join_timeout(self, limit_s: float, waiting: Waiting | None) -> errors.RallypointError:
        why = str(waiting) if waiting else self.looking or "the coordinator does not say why"
        shown_s = round(limit_s, 1) or limit_s
        known = (waiting.hint if waiting is not None else "") or self._told_address
        return errors.JoinTimeoutError(
            f"no round of run {self.settings.run_id!r} was formed within {shown_s:g} s: {why}",
            hint=known or "start the missing nodes, lower the minimum, or raise the join timeout",
            waiting=waiting,
        )

    @property
    def _told_address(self) -> str:
        """Of a node that was elected: where it told the others to come, if they do not."""
        if self.hosted is None or self._search is None or self.run.max_nodes == 1:
            return ""
        own = (
            self.own_address if self.own_address is not None else "which only this machine reaches"
        )
        return (
            f"start the missing nodes; they come to this one at {self.hosted.advertised}, {own}: "
            "--local-addr gives another address"
        )

    async def _why_waiting(self) -> tuple[bool, Waiting | None]:
        """Whether the coordinator answers, and what."""
        if not self.is_connected:
            return False, None
        try:
            async with asyncio.timeout(WHY_TIMEOUT_S):
                return True, await self.waiting()
        except (TimeoutError, errors.CoordinatorError):
            return False, None

    async def waiting(self) -> Waiting | None:
        """Why there is no round yet, from the coordinator; None if there is one.

        Raises CoordinatorLostError.
        """
        request_id, actions = self._machine.ask_waiting()
        told = await self._ask(request_id, actions, ASK_TIMEOUT_S)
        assert isinstance(told, m.WaitingTold)
        return told.waiting

    async def members(self, timeout_s: float | None = ASK_TIMEOUT_S) -> tuple[RoundMember, ...]:
        """The members of the node's round, in node-rank order.

        Raises RoundBrokenError if the run has gone on to another round meanwhile.
        """
        current = self.round
        request_id, actions = self._machine.ask_members()
        told = await self._ask(request_id, actions, timeout_s)
        assert isinstance(told, m.MembersTold)
        # R2: the table is the one that the round's head was made of. The digest is compared and
        # not computed, as a later coordinator may count fields that this side does not know.
        head = current.head if current else None
        if head is None or (told.number, told.digest) != (head.number, head.digest):
            raise errors.RoundBrokenError(self._stale_change(current))
        return told.members

    async def _ask(
        self, request_id: int, actions: list[m.Action], timeout_s: float | None
    ) -> object:
        try:
            return await self._request(request_id, actions, timeout_s)
        except TimeoutError:
            message = f"the coordinator has not answered for {timeout_s:g} s"
            why = f": {self.looking}" if self.looking else ""
            raise errors.CoordinatorLostError(message + why) from None

    def _stale_change(self, current: Round | None) -> Change:
        number = current.head.number if current else 0
        detail = "the run has gone on to another round"
        return self.change or Change(ChangeKind.NODE_LOST, number, detail=detail)

    async def call(self, op: StoreOp, timeout_s: float | None) -> object:
        """A call of the round's store; its result.

        Raises StoreTimeoutError, StoreError, RoundBrokenError, or a CoordinatorError.
        """
        self._check_round()
        wire.check_call(op)
        request_id, actions = self._machine.call(op, timeout_s, self._now_s())
        limit_s = None if timeout_s is None else timeout_s + ANSWER_MARGIN_S
        try:
            result = await self._request(request_id, actions, limit_s)
        except TimeoutError:
            raise errors.StoreTimeoutError(await self._why_unanswered(limit_s)) from None
        if isinstance(result, StoreFailure):
            raise store_error(result, self._stale_change(self.round))
        return result.value  # type: ignore[attr-defined]

    async def _why_unanswered(self, limit_s: float | None) -> str:
        """A write waits for the ledger (R10), so what keeps that says why there is no answer."""
        message = f"the coordinator has not answered for {limit_s:g} s"
        _, waiting = await self._why_waiting()
        why = str(waiting) if waiting is not None else self.looking
        return f"{message}: {why}" if why else message

    def _check_round(self) -> None:
        if self._gone is not None:
            raise self._gone
        if self.change is not None:
            raise errors.RoundBrokenError(self.change)
        if self.round is None:
            raise errors.StoreError("the store belongs to a round, and this node has had none")

    def failed(self, failure: Failure) -> None:
        """Report a worker's failure: it breaks the round, and the cause is looked for."""
        self._act(self._machine.failed(failure))

    def done(self) -> None:
        """Report that all workers have finished."""
        self._act(self._machine.done())

    async def cause(self, timeout_s: float) -> Change | None:
        """Wait until the end of the round is confirmed: its cause. None if it is not in time."""
        await self._until(lambda: self.change is not None and self.change.confirmed, timeout_s)
        return self.change if self.change is not None and self.change.confirmed else None

    async def end_of_run(self, timeout_s: float) -> CloseRecord | None:
        """Wait until the run is closed: how it ended. None if it is not over in time.

        Raises what made the node gone: a CoordinatorError.
        """
        await self._until(lambda: self.closed is not None, timeout_s)
        return self.closed

    # -- going ---------------------------------------------------------------------------------

    def depart(self, reason: str) -> None:
        """Say that this node is going to leave: the others regroup without waiting for it."""
        self._act(self._machine.depart(reason))

    async def close_run(self, outcome: Outcome, reason: str, timeout_s: float) -> CloseRecord:
        """End the run for all; how it ended (somebody may have closed it before).

        Raises CoordinatorLostError or TimeoutError.
        """
        self._act(self._machine.close(outcome, reason))
        await self._until(lambda: self.closed is not None, timeout_s)
        if self.closed is None:
            if self._gone is not None:
                raise self._gone
            raise errors.CoordinatorLostError(
                f"the coordinator did not confirm within {timeout_s:g} s that the run is closed"
            )
        return self.closed

    def goodbye(self, reason: str) -> None:
        """Say that nothing of this node runs any more."""
        self._act(self._machine.goodbye(reason))

    async def aclose(self, *, linger: bool = True) -> None:
        """Close the connection and, after lingering, the coordinator that this node carries.

        A goodbye has `goodbye_timeout_s` to be heard, also over a connection that is lost just now.
        A host stays `linger_s` for the others to say goodbye, and while a live run needs it; one
        that was elected through a ledger hands over instead.
        Idempotent. Cancelling it cuts everything short.
        """
        hosted, self.hosted = self.hosted, None
        try:
            await self._hang_up(hosted)
            if hosted is not None and linger and self._search is None:
                await self._stay_for_the_run(hosted)
                await hosted.linger(self.settings.linger_s)
        finally:
            if hosted is not None:
                await hosted.aclose()
            await self._close_ledger()

    async def _close_ledger(self) -> None:
        """After what needs it to hand over."""
        if self._retiring:
            await asyncio.wait(self._retiring)
        ledger, self._opened_ledger = self._opened_ledger, None
        if ledger is not None:
            await ledger.aclose()

    async def _hang_up(self, hosted: EmbeddedCoordinator | None) -> None:
        if self._machine.desired is m.DesiredState.GONE and (
            self._connection or self._reconnecting
        ):
            # The coordinator answers a goodbye by closing the connection in due form.
            await self._until(lambda: self._gone is not None, self.settings.goodbye_timeout_s)
        self._is_closing = True
        if self._orphan is not None:
            self._orphan.cancel()
        beside, self._beside = self._beside, None
        searching = [task for task in (self._reconnecting, beside) if task is not None]
        for task in searching:
            task.cancel()
        if searching:
            await asyncio.wait(searching)
        self._fail_results(errors.CoordinatorLostError("this node has left the run"))
        connection, self._connection = self._connection, None
        self._machine.disconnected()
        self._schedule_tick()
        if connection is not None:
            connection.close("this node is going")
            try:
                await connection.wait_closed()
            except asyncio.CancelledError:
                connection.abort("this node is going")
                raise

    async def _stay_for_the_run(self, hosted: EmbeddedCoordinator) -> None:
        """R7: the run of the others does not end because its host has left it."""
        if self.closed is not None or not (hosted.is_run_open and hosted.others):
            return
        _log.warning(
            "this node carries the coordinator of run %r and stays until the run ends: "
            "%d connections are left (ending it now, by Ctrl-C or a signal, ends the run)",
            self.settings.run_id,
            hosted.others,
        )
        await hosted.run_over()

    # -- waiting -------------------------------------------------------------------------------

    async def _until(self, is_so: Callable[[], bool], timeout_s: float) -> None:
        """Wait until something is so, the run is closed, the node is gone, or the time is over.

        Raises what made the node gone, unless what was waited for is so.
        """
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        while not is_so():
            if self._gone is not None:
                raise self._gone
            left_s = ends_s - loop.time()
            if self.closed is not None or left_s <= 0:
                return
            await self._wait_for_change(left_s)

    async def _wait_for_change(self, timeout_s: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            if waiter in self._changed:
                self._changed.remove(waiter)

    def _notify(self) -> None:
        waiters, self._changed = self._changed, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _request(
        self, request_id: int, actions: list[m.Action], timeout_s: float | None
    ) -> object:
        """Send a request and wait for its answer. Raises TimeoutError, on this side's deadline.

        Without one the wait still ends: with the round, or with the coordinator.
        """
        if self._gone is not None or self._is_closing:
            self._machine.cancel(request_id)
            raise self._gone or errors.CoordinatorLostError("this node has left the run")
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._results[request_id] = future
        try:
            self._act(actions)
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._results.pop(request_id, None)
            self._act(self._machine.cancel(request_id))

    def _resolve(self, request_id: int, result: object) -> None:
        future = self._results.get(request_id)
        if future is not None and not future.done():
            future.set_result(result)

    def _fail(self, request_id: int, error: Exception) -> None:
        future = self._results.get(request_id)
        if future is not None and not future.done():
            future.set_exception(error)

    def _fail_results(self, error: Exception) -> None:
        for request_id in list(self._results):
            self._fail(request_id, error)


def store_error(failure: StoreFailure, ended: Change) -> errors.RallypointError:
    """The error of a failed call of the store. `ended`: why the round is over, if it is that."""
    if failure.code == ROUND_ENDED:
        return errors.RoundBrokenError(ended)
    if failure.code == TIMEOUT:
        return errors.StoreTimeoutError(
            failure.message, missing=failure.missing, count=failure.missing_count
        )
    return errors.StoreError(failure.message, code=failure.code)


_DO: dict[type[object], Callable[..., None]] = {
    m.Send: Node._send,
    m.Drop: Node._drop,
    m.Attached: Node._attached,
    m.RoundFormed: Node._round_formed,
    m.RoundEnded: Node._round_ended,
    m.RunEnded: Node._run_ended,
    m.WasRefused: Node._was_refused,
    m.SentAway: Node._sent_away,
    m.CallAnswered: Node._call_answered,
    m.MembersTold: Node._told,
    m.WaitingTold: Node._told,
    m.PlacedOnStandby: Node._on_standby,
}
