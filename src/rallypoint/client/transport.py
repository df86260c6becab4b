"""One WebSocket connection to a coordinator: bytes in, bytes out.

It uses the websockets library without its I/O (`ClientProtocol`), in an asyncio protocol. So a
connection needs no task, sending does not wait, and one process can have thousands of nodes. This
file must not decode messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from rallypoint import runtime
from rallypoint.client import fork_safety, untrusted
from rallypoint.client.sockets import ResettingSocket, SocketKeeper
from rallypoint.core.addresses import plain, with_zone
from rallypoint.core.reasons import tidy
from rallypoint.core.values import Address
from rallypoint.errors import UsageError, not_a_coordinator
from rallypoint.security import claims, first_look, pki, token_form
from rallypoint.security.access import Access, CertificateFileError, Certificates
from rallypoint.tokens import token_error
from rallypoint.wire import headers
from rallypoint.wire import messages as wire

CLOSE_TIMEOUT_S: Final = 2.0
_SILENT: Final = logging.Logger("rallypoint.websocket", logging.CRITICAL)
"""At DEBUG the library logs each header, including the token, and parts of each frame. A program
may set DEBUG for all loggers, so this one has no parent and no handler.
"""
_TLS_RECORDS: Final = (b"\x15\x03", b"\x16\x03")
"""The first bytes of an alert and of a handshake (RFC 8446, 5.1)."""


class Connection(asyncio.Protocol):
    """An open connection. `on_message` and `on_closed` are called from the event loop.

    `on_closed` is called once, with the reason, whichever side closed. `sock`: its socket.
    """

    def __init__(self, address: Address, token: str, sock: ResettingSocket) -> None:
        uri = f"ws://{address}{wire.ATTACH_PATH}"
        self.address = address
        self.target = address
        """The name or address that was dialled."""
        self.on_message: Callable[[bytes], None] = lambda data: None
        self.on_closed: Callable[[str], None] = lambda reason: None
        self._websocket = ClientProtocol(
            parse_uri(uri), max_size=wire.ANSWER_BYTES_MAX, logger=_SILENT
        )
        self._token = token
        self._socket = sock
        loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = loop.create_future()
        self._closed: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._cutting: asyncio.TimerHandle | None = None
        self._was_answered = False
        self._speaks_tls = False
        self.asks_no_token = False
        self.has_one_run = False
        """Whether the coordinator has announced that it admits everybody."""
        self.was_ended_by_peer = False
        """Whether the coordinator's kernel has ended it, by a FIN or a reset."""
        self._parts: list[bytes] = []
        self._why_closed = ""
        """Why this side closed the connection; "" if it did not."""

    @property
    def local_host(self) -> str:
        """This side's address, where the coordinator's machine can reach this one."""
        assert self._transport is not None
        host, _, *more = self._transport.get_extra_info("sockname")
        with contextlib.suppress(OSError):  # the interface may be gone
            if more and more[1]:  # Python omits the zone of a link-local address
                return with_zone(str(host), socket.if_indextoname(more[1]))
        return plain(str(host))

    @property
    def source(self) -> Address:
        """The address and port of this side's socket."""
        assert self._transport is not None
        host, port = self._transport.get_extra_info("sockname")[:2]
        return Address(str(host), port)

    @property
    def was_closed_by_peer(self) -> bool:
        """Whether the coordinator closed it by a handshake, having read all earlier messages."""
        return self._websocket.close_rcvd is not None

    def keep_with(self, keeper: SocketKeeper) -> None:
        """See network.Connection."""
        if not self._closed.done():
            self._socket.keep_with(keeper)

    def send(self, payload: bytes) -> None:
        """Queue one binary message. Does nothing if the connection is closed."""
        if self._websocket.state is State.OPEN:
            self._websocket.send_binary(payload)
            self._flush()

    def close(self, reason: str) -> None:
        """Close, with a closing handshake that may take CLOSE_TIMEOUT_S."""
        self._why_closed = reason
        if self._transport is None or self._closed.done():
            return
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(1000)
            self._flush()
        if self._websocket.state is State.CONNECTING:
            self.abort(reason)
        elif self._cutting is None:
            loop = asyncio.get_running_loop()
            self._cutting = loop.call_later(CLOSE_TIMEOUT_S, self.abort, reason)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed: at most CLOSE_TIMEOUT_S after `close`."""
        await asyncio.shield(self._closed)

    def abort(self, reason: str) -> None:
        """Cut the connection by a reset. Unsent messages are lost."""
        self._why_closed = reason
        self._socket.ends_in_order = False
        if self._transport is not None:
            if not self._transport.is_closing():
                # Now, because a loop may close the socket of a TLS connection before it tells that.
                self._socket.choose_how()
            self._transport.abort()

    async def opened(self) -> None:
        """Wait for the handshake. Raises NotACoordinatorError, TokenError, or OSError."""
        await self._opened

    # -- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the WebSocket."""
        # Not asserted, because uvloop's transports have these methods, but do not derive from
        # asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        request = self._websocket.connect()
        request.headers[headers.CLIENT] = "node"
        if self._token:
            request.headers["Authorization"] = f"Bearer {token_form.credential(self._token)}"
        self._websocket.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Read received bytes, and pass on each whole message."""
        if not self._was_answered:
            self._was_answered, self._speaks_tls = True, data[:2] in _TLS_RECORDS
        self._websocket.receive_data(data)
        self._take_events()
        self._flush()

    def eof_received(self) -> bool:
        """The coordinator will send nothing more."""
        if self._was_answered:
            self._websocket.receive_eof()
            self._take_events()
            self._flush()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone. The event loop closes the socket after this."""
        self._socket.choose_how()
        if self._cutting is not None:
            self._cutting.cancel()
        if not self._opened.done():
            # This is an OSError and not a NotACoordinatorError, because a coordinator that ends
            # does the same.
            how = "closed the connection in the middle of an answer"
            if not self._was_answered:
                how = "closed the connection without an answer"
            self._opened.set_exception(error or ConnectionResetError(how))
            # Mark the exception as retrieved, in case the caller has given up waiting.
            self._opened.exception()
        is_end = error is None or isinstance(error, ConnectionError)
        self.was_ended_by_peer = is_end and not self._why_closed
        if not self._closed.done():
            self._closed.set_result(None)
            self.on_closed(str(error) if error else self._why_closed or self._how_peer_ended())

    def _how_peer_ended(self) -> str:
        if self.was_closed_by_peer:
            return "the coordinator closed the connection"
        # The kernel closes the connections of a killed process in the same way.
        return (
            "the connection ended without a goodbye: the coordinator's process or machine may "
            "have ended"
        )

    # -- helpers -------------------------------------------------------------------------------

    def _flush(self) -> None:
        transport = self._transport
        if transport is None:
            return
        if self._websocket.close_sent is not None:
            # The close frame is sent before the FIN, so this FIN is no sign of the process's end.
            self._socket.ends_in_order = True
        for data in self._websocket.data_to_send():
            if data:
                transport.write(data)
            elif not transport.is_closing():
                transport.close()  # empty data means that this side has ended

    def _take_events(self) -> None:
        for event in self._websocket.events_received():
            if isinstance(event, Response):
                self.asks_no_token = headers.NO_TOKEN in event.headers.get_all(headers.TOKEN)
                self.has_one_run = headers.ONE_RUN in event.headers
                self._finish_handshake()
            elif isinstance(event, Frame):
                self._take_frame(event)
        if self._websocket.handshake_exc is not None and not self._opened.done():
            self._finish_handshake()

    def _finish_handshake(self) -> None:
        if self._opened.done():
            return
        error = self._websocket.handshake_exc
        if error is None:
            self._opened.set_result(None)
        else:
            if self._speaks_tls:
                self._opened.set_exception(untrusted.needs_token(str(self.address)))
            else:
                self._opened.set_exception(_handshake_error(self.address, error))
            self.abort(str(error))

    def _take_frame(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.BINARY, Opcode.CONT):
            return
        self._parts.append(bytes(frame.data))
        if frame.fin:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts = []
            self.on_message(data)


async def connect(address: Address, sockaddr: object, family: int, access: Access) -> Connection:
    """Open a connection to one resolved address, by TLS if there are certificates or a CA for it.

    Raises OSError (refused, unreachable, ...), NotACoordinatorError, TokenError, or UsageError for
    a file of certificates. A cancellation leaves nothing open.
    """
    token = access.token
    if access.own is not None:
        return await _connect_by_pki(address, sockaddr, family, access, access.own)
    try:
        parts = token_form.parse(token)
    except ValueError as error:  # it is from a lease: settings refuse such a token
        raise not_a_coordinator(str(address), f"the token in its lease {error}") from None

    async def where() -> dict[str, Any]:
        return {"sock": await _connected(socket.socket(family, socket.SOCK_STREAM), sockaddr)}

    if parts is None:
        try:
            return await _connect(address, sockaddr, family, token, {})
        except ConnectionResetError as error:
            # A server with TLS ends a connection in clear without a word.
            if error.errno is not None or not await first_look.has_tls(where):
                raise
            raise untrusted.needs_token(str(address)) from None
    try:
        connection = await first_look.dial(
            parts, where, lambda client: _dialed(address, sockaddr, family, token, client.options)
        )
        return await _opened(connection)
    except first_look.OtherAuthorityError as error:
        raise untrusted.other_authority(str(address), parts.ca, error.shown) from None
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in untrusted.OTHER_AUTHORITY:
            shown = await first_look.authority_at(await where())
            raise untrusted.other_authority(str(address), parts.ca, shown) from None
        raise untrusted.failed_handshake(str(address), parts.ca, error) from None
    except ssl.SSLError as error:
        raise untrusted.failed_handshake(str(address), parts.ca, error) from None


async def _connect_by_pki(
    address: Address, sockaddr: object, family: int, access: Access, own: Certificates
) -> Connection:
    try:
        # In a thread: the system's authorities take some time to read.
        client = await runtime.in_thread(lambda: pki.client(own, access.name))
        return await _connect(address, sockaddr, family, access.token, client.options)
    except CertificateFileError as error:
        raise UsageError(str(error), hint=untrusted.FILES_HINT) from None
    except ssl.SSLCertVerificationError as error:
        sock = await _connected(socket.socket(family, socket.SOCK_STREAM), sockaddr)
        shown = await first_look.shown_at({"sock": sock}, access.name)
        raise untrusted.by_pki(str(address), access.name, own, error, shown) from None
    except ssl.SSLError as error:
        raise untrusted.refused_by_pki(str(address), own, error) from None
    except ConnectionResetError as error:
        if error.errno is not None and own.cert is None:
            raise
        raise untrusted.closed_by_pki(own) from None


async def _connect(
    address: Address, sockaddr: object, family: int, token: str, secured: dict[str, Any]
) -> Connection:
    return await _opened(await _dialed(address, sockaddr, family, token, secured))


async def _dialed(
    address: Address, sockaddr: object, family: int, token: str, secured: dict[str, Any]
) -> Connection:
    """A connection after its TLS handshake, if it has one."""
    loop = asyncio.get_running_loop()
    sock = ResettingSocket(family, socket.SOCK_STREAM)
    fork_safety.close_in_children(sock)
    await _connected(sock, sockaddr)
    try:
        _, connection = await loop.create_connection(
            lambda: Connection(address, token, sock), sock=sock, **secured
        )
    except BaseException:
        sock.close()
        raise
    return connection


async def _opened(connection: Connection) -> Connection:
    try:
        await connection.opened()
    except BaseException:
        connection.abort("gave up")
        raise
    return connection


async def _connected(sock: socket.socket, sockaddr: object) -> socket.socket:
    """Connect it. It is closed if that fails."""
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock


SAID_MAX: Final = 500
TOO_MANY: Final = 429
RETRIED_STATUSES: Final = (502, 503, 504)
"""The answers of a proxy while the coordinator behind it restarts. A node tries again."""


def _handshake_error(address: Address, error: Exception) -> Exception:
    if isinstance(error, InvalidStatus):
        return _status_error(address, error.response)
    if isinstance(error, InvalidHandshake | EOFError | ValueError):
        return not_a_coordinator(str(address), str(error) or type(error).__name__)
    return error


class _ErrorBody(msgspec.Struct):
    error: str = ""
    hint: str = ""
    fingerprint: str = ""
    origin: str = ""
    reason: str = ""


def _is_unchecked(body: _ErrorBody) -> bool:
    """Whether a coordinator has not checked this node's claim, and may do so soon."""
    return body.reason == claims.UNCHECKED.reason


def _is_about_token(status: int, body: _ErrorBody) -> bool:
    """Whether a coordinator refuses this token for good.

    403: it is accepted, and is not for a node. 429: it is wrong, as others before; or it was not
    checked, and may be right; or a proxy answers, which knows no token.
    """
    if status == TOO_MANY:
        return bool(body.error) and not _is_unchecked(body)
    return status == 401 or (status == 403 and body.reason == "role")


def _status_error(address: Address, response: Response) -> Exception:
    try:
        body = msgspec.json.decode(response.body or b"{}", type=_ErrorBody)
    except wire.UNDECODABLE:
        body = _ErrorBody()
    if _is_about_token(response.status_code, body):
        message = body.error or "the coordinator asks for a token"
        told = (body.hint, body.fingerprint, body.origin, body.reason)
        return token_error(f"{address}: {message}", *told)
    answer = f"HTTP status {response.status_code} {response.reason_phrase}"
    is_unchecked = response.status_code == TOO_MANY and _is_unchecked(body)
    if response.status_code in RETRIED_STATUSES or is_unchecked:
        # A coordinator's 503 names the limit that was reached, and how to raise it.
        said = tidy("; ".join(filter(None, (body.error, body.hint))), SAID_MAX)
        return ConnectionRefusedError(f"{answer}: {said}" if said else answer)
    return not_a_coordinator(str(address), answer, response.status_code)
