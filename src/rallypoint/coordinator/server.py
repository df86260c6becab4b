"""One port for nodes and people: WebSocket for nodes, HTTP for people (aiohttp).

It passes bytes and time to the coordinator, and decides nothing. `websocket` reads the frames of
nodes, and `frames` writes those to them. aiohttp does the handshakes and serves HTTP.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

from aiohttp import WSMsgType, web
from aiohttp.typedefs import Handler, Middleware

from rallypoint import runtime
from rallypoint.coordinator import (
    actions_api,
    certificate_end,
    events_api,
    guard,
    http_api,
    leases_api,
    metrics,
    page_files,
    response_headers,
)
from rallypoint.coordinator.audit import Audit
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.driver import CoordinatorDriver
from rallypoint.coordinator.event_keeper import EventKeeper
from rallypoint.coordinator.event_sweeper import ELECTED_LOOK_S, LOOK_S
from rallypoint.coordinator.frames import CLOSE_TIMEOUT_S, WebSocketOutlet
from rallypoint.coordinator.hosts import KnownHosts
from rallypoint.coordinator.http_connection import connections_of
from rallypoint.coordinator.http_requests import Requests
from rallypoint.coordinator.listener import Listener, ListenerLimits, connections_max
from rallypoint.coordinator.replicas import Replicas
from rallypoint.coordinator.revocations import Revocations
from rallypoint.coordinator.session import Session
from rallypoint.coordinator.strangers import login_refused
from rallypoint.coordinator.supervision import cancelled
from rallypoint.coordinator.tallies import Tallies
from rallypoint.coordinator.timed_ledger import TimedLedger
from rallypoint.coordinator.tokens import Login, Tokens
from rallypoint.coordinator.websocket import OTHER_BYTES_MAX, FrameReader
from rallypoint.core.addresses import network, plain
from rallypoint.core.quotas import Account
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.values import Address, ConnectionEnd
from rallypoint.ledger.contract import Ledger
from rallypoint.net import LISTEN_BACKLOG
from rallypoint.security import claims
from rallypoint.security.hashed import SOURCE as LISTED
from rallypoint.security.hashed import HashedToken
from rallypoint.security.identities import Identities, Prepared
from rallypoint.security.logins import Logins
from rallypoint.security.roles import EVERYBODY, Denial, Principal, Right
from rallypoint.wire import api_paths, headers
from rallypoint.wire import messages as wire

_log = logging.getLogger("rallypoint.coordinator")

_NOT_A_NODE: Final = "use a node of Rallypoint: another program, or a damaged message, came"
_ASKED_WITHOUT: Final = (wire.ATTACH_PATH, api_paths.ME)
_SOURCES: Final = (claims.SOURCE, LISTED)
"""Of tokens whose end closes connections."""
ENDS_LOOK_S: Final = 2.0
"""How often a coordinator looks whether the time of a connection's token is over, in seconds."""
UNSENT_BYTES_MAX: Final = 32 * 1024
"""How many bytes a connection's transport may buffer. More wait in the session, which counts them.
"""


class CoordinatorServer:
    """A coordinator on bound sockets, in the running event loop.

    `start` takes bound sockets and owns them from then on, even if it fails. They need not listen
    yet. `aclose` is idempotent and bounded in time.
    """

    def __init__(
        self,
        config: CoordinatorConfig | None = None,
        *,
        ledger: Ledger | None = None,
        audit: Audit | None = None,
    ) -> None:
        """`audit`: the audit log; None: there is none."""
        self._audit = audit or Audit()
        self._revoked_here = (config or CoordinatorConfig()).revoked_tokens
        self._revoked_in_ledger: frozenset[str] = frozenset()
        self._revocations: Revocations | None = None
        self._looking: asyncio.Task[None] | None = None
        self._watching_ends: asyncio.Task[None] | None = None
        self._logins = Logins()
        self._answering: dict[int, web.Request] = {}
        """The requests that are being answered, by their ids. A stream of events is one."""
        self.config = config or CoordinatorConfig()
        accepted = (self.config.token, *self.config.more_tokens)
        self._identities = Identities(accepted, self.config.certificates, self.config.client_ca)
        authorities = self._identities.authorities
        self.tokens = Tokens(accepted, self.config.hashed_tokens, authorities)
        self.tokens.revoked = self._revoked_here
        self.tokens.revoked_by.update((config or CoordinatorConfig()).revoked_by)
        self.tallies = Tallies()
        self.tallies.certificate_ends_at = self._identities.ends_at
        if ledger is not None:
            ledger = TimedLedger(ledger, self.tallies.ledger_took)
        self.driver = CoordinatorDriver(self.config, ledger)
        self.coordinator = self.driver.coordinator
        self.ownership = self.driver.ownership
        self.coordinator.events.sinks.append(self.tallies.take)
        self._replicas: Replicas | None = None
        self.coordinator.on_denied = self._attach_denied
        self._keeper: EventKeeper | None = None
        self._leases: leases_api.Leases | None = None
        if ledger is not None:
            self._revocations = Revocations(ledger, self._revoked)
            self.tokens.awaits_revoked = True
            own = self.config
            look_s = LOOK_S if own.only_run is None else ELECTED_LOOK_S
            events = self.coordinator.events
            self._keeper = EventKeeper(ledger, events, self._process, look_s=look_s)
            self._leases = leases_api.Leases(ledger, only_own=own.only_run is not None)
            self._replicas = Replicas(
                ledger,
                own.only_run,
                own.clock_host,
                self._process,
                self._keeper.reader,
                self._identities.client_to,
            )
        self._requests = Requests(self.coordinator)
        self._runner: web.AppRunner | None = None
        self._sockets: tuple[socket.socket, ...] = ()
        self._closing: set[asyncio.Task[bool]] = set()
        self._ending: asyncio.Task[None] | None = None
        self._lag: asyncio.Task[None] | None = None
        self._ending_soon: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self._known_hosts = KnownHosts(self.config.hosts)

    async def __aenter__(self) -> CoordinatorServer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def start(
        self, sockets: Sequence[socket.socket], addresses: tuple[Address, ...] = ()
    ) -> None:
        """Serve on these sockets until `aclose`.

        `addresses`: where nodes reach these sockets; they are written to the lease in the ledger.
        Raises LedgerError if the ledger is unfit or unreachable.
        """
        self._sockets = tuple(sockets)
        for each in addresses:
            self._known_hosts.add(each.host)
        try:
            await self.driver.start(addresses)
            if self._keeper is not None:
                self._keeper.start()
            self._lag = runtime.spawn(
                metrics.measure_lag(self.tallies), self.coordinator.events.failed
            )
            if self._revocations is not None and self._has_ids:
                # Before the first login, so that nobody has to wait for it.
                await self._revocations.look()
            self._watch()
            await self._serve()
        except BaseException:
            await self.aclose()
            raise

    @property
    def _has_ids(self) -> bool:
        return self.tokens.may_be_revoked or self._identities.asks_for_certificates

    def _watch(self) -> None:
        """Look after certificates and revoked tokens, as soon as there are such: also after a
        reload."""
        if self._lag is None or self._ending is not None:  # not started yet, or stopping
            return
        failed = self.coordinator.events.failed
        if self._identities and self._ending_soon is None:
            warning = certificate_end.warn(lambda: self._identities.ends_at)
            self._ending_soon = runtime.spawn(warning, failed)
        if self._has_ids and self._watching_ends is None:
            self._watching_ends = runtime.spawn(self._watch_ends(), failed)
        if self._revocations is not None and self._has_ids and self._looking is None:
            self._looking = runtime.spawn(self._revocations.run(), failed)

    async def _serve(self) -> None:
        app = web.Application(client_max_size=64 * 1024, middlewares=[self._record_request()])
        app[http_api.COORDINATOR] = self.coordinator
        if self._replicas is not None:
            app[http_api.REPLICAS] = self._replicas
        if self._leases is not None:
            app[leases_api.LEASES] = self._leases
        http_api.add_routes(app)
        actions_api.add_routes(app)
        events_api.add_routes(app)
        leases_api.add_routes(app)
        page_files.add_routes(app)
        metrics.add_routes(app, self.tallies)
        app.router.add_get(wire.ATTACH_PATH, self._attach)
        app.on_response_prepare.extend((response_headers.add, _note_beginning))
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=CLOSE_TIMEOUT_S)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        for sock in self._sockets:
            sock.listen(LISTEN_BACKLOG)
        self.coordinator.admission.limit_descriptors(connections_max())
        limits = ListenerLimits(
            strangers_max=self.config.strangers_max,
            connections_max=self.coordinator.admission.descriptors_max,
            stranger_s=self.config.attach_timeout_s,
        )
        self._listener = Listener(
            self._sockets,
            connections_of(server),
            lambda: len(server.connections),
            limits,
            tls=self._identities.server,
            on_refused=self._audit.certificate_refused,
        )
        self._listener.start()

    async def aclose(self, reason: str = "the coordinator is stopping") -> None:
        """Stop listening and close every connection. If cancelled, it still waits for both."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._close(reason))
        try:
            await asyncio.shield(self._ending)
        except asyncio.CancelledError:
            await asyncio.wait([self._ending])
            raise

    async def _close(self, reason: str) -> None:
        self.driver.stop_ticking()
        works = (self._lag, self._looking, self._watching_ends, self._ending_soon)
        await cancelled([each for each in works if each is not None])
        runner, self._runner = self._runner, None
        self._audit.close()
        if runner is not None:
            await self.ownership.before_close()
        await self._stop_listening()
        if runner is None:
            return
        await self.ownership.hand_over(CLOSE_TIMEOUT_S, reason)
        self.coordinator.close(reason)
        if self._keeper is not None:
            await self._keeper.aclose()
        if self._closing:
            await asyncio.wait(self._closing, timeout=CLOSE_TIMEOUT_S)
        await self.ownership.aclose()
        await runner.cleanup()
        if self._replicas is not None:
            await self._replicas.aclose()

    async def _stop_listening(self) -> None:
        """Accept no more connections, and close the sockets."""
        if self._listener is not None:
            self._listener.close()
            await self._listener.entered()
        for sock in self._sockets:
            sock.close()

    @property
    def port(self) -> int:
        """The port on which it listens. Only while it does."""
        port: int = self._sockets[0].getsockname()[1]
        return port

    def prepare(self, accepted: tuple[str, ...]) -> Prepared:
        """The TLS contexts for `replace_tokens`, with a PKI's files as they are now.

        Any thread may call it: a file system may hang. Raises ValueError as `replace_tokens`.
        """
        return self._identities.prepare(accepted)

    def replace_tokens(
        self,
        accepted: tuple[str, ...],
        hashed: tuple[HashedToken, ...] = (),
        revoked: frozenset[str] = frozenset(),
        identities: Prepared | None = None,
        *,
        revoked_by: Mapping[str, str] | None = None,
    ) -> int:
        """Accept these tokens from now on. Returns how many connections have another one.

        `hashed`: more, each with its roles. `revoked`: the ids of those that count no more, whose
        connections are closed; they stay revoked. `revoked_by`: who has revoked them, if known. All
        others stay open: accept the old and the new token together for a while, so that no node is
        refused. `identities`: of `prepare`; None: the files of a PKI are read again here, and the
        event loop waits for them.
        Raises ValueError if no token is left, or one names an authority of which none has a
        certificate.
        """
        if len(self.tokens) and not any(accepted) and not hashed:
            raise ValueError("a coordinator with a token needs one")
        self._identities.use(identities or self.prepare(accepted))
        self.tallies.certificate_ends_at = self._identities.ends_at
        if any(accepted) or hashed:
            self.tokens.replace(accepted, hashed, self._identities.authorities)
        self._revoked_here |= revoked
        self.tokens.revoked_by |= revoked_by or {}
        self._revoke()
        self._watch()
        sessions = self.coordinator.sessions.values()
        stay = [each for each in sessions if each.principal.id not in self.tokens.revoked]
        outlets = [session.outlet for session in stay]
        shown = [each.token for each in outlets if isinstance(each, WebSocketOutlet)]
        return sum(each is None or not self.tokens.knows(each) for each in shown)

    def _revoked(self, in_ledger: Mapping[str, str]) -> None:
        self._revoked_in_ledger = frozenset(in_ledger)
        self.tokens.revoked_by |= in_ledger
        self.tokens.awaits_revoked = False
        self._revoke()

    def _revoke(self) -> None:
        """Refuse the tokens that were revoked, and end what is open with them."""
        before, now = self.tokens.revoked, self._revoked_here | self._revoked_in_ledger
        self.tokens.revoked = now
        new = now - before
        if not new:
            return
        who = self.tokens.revoked_by

        def why(principal: Principal, what: str) -> Denial | None:
            is_one = principal.id in new
            return claims.revoked(what, who.get(principal.id, "")) if is_one else None

        self._end_sessions(why)
        for request in list(self._answering.values()):
            # Others have no answer yet: `_read` refuses them, so that they learn why.
            is_cut = _HAS_BEGUN in request and guard.principal_of(request).id in new
            if is_cut and request.transport is not None:
                request.transport.abort()

    async def _watch_ends(self) -> None:
        """End what is open with tokens whose time is over, until cancelled.

        The time of day may jump, so it is looked at again and again.
        """
        while True:
            await asyncio.sleep(ENDS_LOOK_S)
            self._end_expired()

    def _end_expired(self) -> None:
        now_s = runtime.here().wall_s()

        def why(principal: Principal, what: str) -> Denial | None:
            # A client with a certificate has another one in time, and connects with it the next
            # time. TLS has checked the one of this connection.
            if principal.source not in _SOURCES or not claims.has_ended(principal, now_s):
                return None
            assert principal.ends_at is not None
            return claims.expired(what, principal.ends_at)

        # A stream of events ends by itself: see `_answered`.
        self._end_sessions(why)

    def _answered(self, request: web.Request) -> None:
        """The answer has ended, for a stream of events perhaps with the time of its token."""
        principal = guard.principal_of(request)
        if self._answering.pop(id(request), None) is None or principal.ends_at is None:
            return
        if claims.has_ended(principal, runtime.here().wall_s()):
            told = claims.expired(f"token {principal.label}", principal.ends_at)
            self._audit.stream_closed(request, principal, told)

    def _end_sessions(self, why: Callable[[Principal, str], Denial | None]) -> None:
        """Close the connections of nodes whose token does not count any more.

        `why`: says that of a token in these words; None: it counts.
        """
        closed: Counter[str] = Counter()
        for session in list(self.coordinator.sessions.values()):
            principal = session.principal
            told = why(principal, f"this node's token {principal.label}")
            if told is None:
                continue
            its = why(principal, f"its token {principal.label}") or told
            session.refuse(Refusal(RefusalCode.TOKEN, told.message, told.hint), its.message)
            self._audit.connection_closed(session.outlet.peer, principal, told)
            for_log = why(principal, f"token {principal.id}") or told
            closed[for_log.message] += 1
        for message, count in closed.items():
            nodes = "one node" if count == 1 else f"{count} nodes"
            _log.warning("%s: the connections of %s are closed", message, nodes)

    def filenos(self) -> list[int]:
        """All descriptors of this server, which a child closes after fork()."""
        open_now = [sock.fileno() for sock in self._sockets]
        server = self._runner.server if self._runner is not None else None
        for connection in server.connections if server is not None else ():
            if connection.transport is not None:
                sock = connection.transport.get_extra_info("socket")
                open_now.append(sock.fileno() if sock is not None else -1)
        return open_now

    def _process(self) -> str:
        """The process that its lease names."""
        return self.ownership.process

    # -- connections ---------------------------------------------------------------------------

    def _record_request(self) -> Middleware:
        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            if http_api.is_sent_by_foreign_page(request):
                return self._foreign(request)
            if not self._admits_everybody:
                found = self._login(request)
                if isinstance(found, Denial):
                    return await self._unauthorized(request, handler, found)
                request[guard.PRINCIPAL] = guard.narrowed(found, request)
                self._admit(request)
                if http_api.SHOWN not in request and http_api.is_foreign_page(request):
                    return self._foreign(request)
                denied = guard.denial(request, guard.principal_of(request))
                if denied is not None:
                    return self._denied(request, denied)
            else:
                self._admit(request)
                request[guard.PRINCIPAL] = guard.narrowed(EVERYBODY, request)
                if http_api.is_foreign_page(request):
                    return self._foreign(request)
                if await http_api.is_for_another(request, self._known_hosts):
                    why = http_api.why_for_another(request)
                    self._audit.page_refused(request, 421, why)
                    return http_api.for_another(request)
                denied = guard.denial(request, guard.principal_of(request))
                if denied is not None:
                    return self._denied(request, denied)
            try:
                if request.path == wire.ATTACH_PATH or request.path in http_api.OPEN_PATHS:
                    return await handler(request)
                account = _account_of(request)
                self._answering[id(request)] = request
                if guard.right_of(request) is Right.ACT:
                    return await self._audited(request, handler, account)
                is_last = self._is_crowded()
                read = functools.partial(self._read, handler=handler)
                return await self._requests.answer(request, read, account, is_last=is_last)
            except (ConnectionError, web.RequestPayloadError):
                # the client disconnected during its request's body, or during the answer
                return _hung_up()
            except RuntimeError:
                # aiohttp raises this if a body is read after the connection has ended.
                if request.transport is not None:
                    raise
                return _hung_up()
            finally:
                self._answered(request)

        return note

    @property
    def _admits_everybody(self) -> bool:
        return not (len(self.tokens) or self._identities.asks_for_certificates)

    def _login(self, request: web.Request) -> Principal | Denial:
        """Who sends the request, by its token, or else by its certificate."""

        def may_check() -> bool:
            return self._logins.may_check(_account_of(request).address, _now_s())

        login = self.tokens.login(request.headers.get("Authorization"), may_check)
        if isinstance(login, Login):
            request[http_api.SHOWN] = login.token
            return login.principal
        asks = self._identities.asks_for_certificates
        if not asks or request.transport is None or "Authorization" in request.headers:
            return login
        found = guard.of_certificate(request.transport.get_extra_info("peercert"), request)
        if isinstance(found, Principal):
            return self.tokens.revocation(found.id, found.id) or found
        return found

    async def _unauthorized(
        self, request: web.Request, handler: Handler, denied: Denial
    ) -> web.StreamResponse:
        if guard.right_of(request) is Right.NOTHING:
            response = await handler(request)
        else:
            # A node with several addresses asks without a token first, and so does the page.
            is_asking = request.path in _ASKED_WITHOUT and "Authorization" not in request.headers
            why = denied.message
            self.tallies.logins_refused += not is_asking
            waits_s = self._failed(request, denied)
            response = http_api.unauthorized(request, self.tokens.first, denied, waits_s)
            if not is_asking:
                self._audit.login_refused(request.remote, why, response.status)
            if not waits_s:
                level = logging.INFO if is_asking else logging.WARNING
                login_refused(request.remote, why, level)
        # otherwise its connection would count as a stranger's for ever
        return _last(request, response)

    def _failed(self, request: web.Request, denied: Denial) -> float:
        """Count a failed login. Returns how long its address has to wait, in seconds."""
        now_s = _now_s()
        if denied in (claims.UNCHECKED, claims.UNREAD):
            return 1.0
        if denied is claims.DAMAGED:
            self._logins.check_failed(now_s)
        if "Authorization" not in request.headers:
            return 0.0
        return self._logins.failed(_account_of(request).address, now_s)

    async def _read(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """What a request wants to read, unless its token was revoked meanwhile."""
        response = await handler(request)
        principal = guard.principal_of(request)
        if response.prepared or principal.id not in self.tokens.revoked:
            return response
        denied = self.tokens.revocation(principal.id, f"token {principal.label}")
        assert denied is not None
        refusal = http_api.unauthorized(request, self.tokens.first, denied)
        self._audit.login_refused(request.remote, denied.message, refusal.status)
        return _last(request, refusal)

    async def _audited(
        self, request: web.Request, handler: Handler, account: Account
    ) -> web.StreamResponse:
        """Answer a request that changes a run, and record it."""
        status: int | None = None
        answer: web.StreamResponse | None = None
        try:
            is_last = self._is_crowded()
            answer = await self._requests.answer(request, handler, account, is_last=is_last)
            status = answer.status
            return answer
        except web.HTTPException as error:
            status = error.status
            raise
        finally:
            self._audit.acted(request, guard.principal_of(request), status, answer)

    def _attach_denied(self, session: Session, run_id: str, denied: Denial) -> None:
        seen = session.outlet.seen if isinstance(session.outlet, WebSocketOutlet) else None
        address = plain(seen.host) if seen is not None else "local"
        self._audit.attach_denied(address, session.principal, run_id, denied)

    def _foreign(self, request: web.Request) -> web.StreamResponse:
        """The answer to a page of another site."""
        self._audit.page_refused(request, 403, http_api.why_foreign(request))
        return _last(request, http_api.foreign_page(request))

    def _denied(self, request: web.Request, denied: Denial) -> web.StreamResponse:
        """The answer to a request whose token is accepted, and does not suffice."""
        self._audit.denied(request, guard.principal_of(request), denied)
        answer = http_api.json_error(403, denied.message, denied.hint, reason=denied.reason)
        return _last(request, answer)

    def _admit(self, request: web.Request) -> None:
        if self._listener is not None:
            self._listener.admit(request.transport)

    def _is_crowded(self) -> bool:
        """Whether connections are so many that idle ones have to close."""
        server = self._runner.server if self._runner is not None else None
        return (
            server is not None
            and len(server.connections) > self.coordinator.admission.descriptors_max * 3 // 4
        )

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT_S, max_msg_size=OTHER_BYTES_MAX, compress=False
        )
        if not _can_be_websocket(ws, request):
            hint = f"nodes attach here over WebSocket; for the status use {api_paths.RUNS}"
            response = http_api.json_error(426, "this path is for nodes of a run", hint)
            response.headers["Upgrade"] = "websocket"
            return response
        if has_body(request):
            # aiohttp would read these bytes as frames, and a proxy as a body.
            response = http_api.json_error(
                400, "a request for a WebSocket has no body", "send none"
            )
            return _last(request, response)
        if request.transport is None:
            return _hung_up()
        request.transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        token, account = request.get(http_api.SHOWN), _account_of(request)
        refusal = self.coordinator.admission.session_refusal(account)
        if refusal is not None:
            return _last(request, http_api.json_error(503, refusal.message, refusal.hint))
        outlet = WebSocketOutlet(ws, request.transport, self._closing, token, account)
        if self._admits_everybody:
            ws.headers[headers.TOKEN] = headers.NO_TOKEN
        only_run = self.coordinator.config.only_run
        if only_run is not None:
            ws.headers[headers.ONE_RUN] = quote(only_run, safe="")
        session = self.coordinator.connected(outlet, guard.principal_of(request))

        def ended(end: ConnectionEnd) -> None:
            session.connection_lost(end, outlet.seen)
            if outlet.backlog_bytes():  # its peer may never read that
                asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, outlet.abort)

        def refused(why: str) -> None:
            session.refuse(Refusal(RefusalCode.MALFORMED, why, _NOT_A_NODE))

        # Set the reader before the answer to the handshake, so that it gets every byte of the node.
        reader = FrameReader(
            request.transport,
            session.received,
            ended,
            refused,
            _taken_early(request),
            session,
            lambda: outlet.has_closed,
        )
        try:
            try:
                await ws.prepare(request)
            except ConnectionResetError:
                return _hung_up()
            reader.begin()
            async for message in ws:
                if message.type is WSMsgType.BINARY:
                    session.received(message.data)
                elif message.type is WSMsgType.TEXT:
                    session.refuse(_TEXT_REFUSAL)
        except ConnectionResetError:
            """aiohttp answered a ping of a peer that has disconnected."""
        finally:
            ended(reader.end)
        return ws


_HAS_BEGUN: web.RequestKey[bool] = web.RequestKey("has_begun", bool)
"""The first bytes of the answer are being sent."""


async def _note_beginning(request: web.Request, _: web.StreamResponse) -> None:
    request[_HAS_BEGUN] = True


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _call_soon(callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(callback)


def _can_be_websocket(ws: web.WebSocketResponse, request: web.Request) -> bool:
    try:
        return ws.can_prepare(request).ok
    except ValueError:  # aiohttp raises this for a handshake key that is not base64
        return False


def has_body(request: web.Request) -> bool:
    """Whether the request has a body."""
    size = request.headers.get("Content-Length", "0").strip()
    return "Transfer-Encoding" in request.headers or size.strip("0") != ""


def _taken_early(request: web.Request) -> bytes:
    """The bytes that came after the request for a WebSocket. aiohttp keeps them for its own reader.

    aiohttp has no public name for them. Take them away, because two readers of one stream would
    find frames at different places in it.
    """
    protocol = request.protocol
    early = bytes(protocol._message_tail)
    protocol._message_tail = b""
    return early


def _last(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Mark an answer as the last on its connection. Bytes after the request are not read."""
    response.force_close()
    _taken_early(request)
    return response


def _hung_up() -> web.Response:
    """An answer for a peer that has disconnected or sent no valid body, as aiohttp needs one."""
    return web.Response(status=400)


_TEXT_REFUSAL: Final = Refusal(
    RefusalCode.MALFORMED,
    "the messages of this protocol are binary; this one is text",
    _NOT_A_NODE,
)


def account_of(peer: Sequence[Any] | None, principal: Principal) -> Account:
    """The account of a connection: who it is, and its address (of IPv6, the /64 network).

    The text of a token does not count: several texts may be one claim. `peer`: its address, in the
    form that the socket returns.
    """
    who = f"{principal.source}\n{principal.id}"
    name = hashlib.sha256(who.encode()).hexdigest()[:16] if principal.id else ""
    return Account(name, network(str(peer[0])) if peer else "")


def _account_of(request: web.Request) -> Account:
    transport = request.transport
    peer = transport.get_extra_info("peername") if transport is not None else None
    return account_of(peer, guard.principal_of(request))
