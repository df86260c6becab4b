"""Accepts connections, with a limit for those without a token, and one for all.

Above a limit, connections wait in the kernel's backlog. There is no limit for each address, because
many nodes share one behind a NAT or an ingress. This file handles sockets and protocols, and must
not check tokens: the server calls `admit` when a connection has sent one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import msgspec

from rallypoint import logs
from rallypoint.clock import StallProofClock
from rallypoint.coordinator.strangers import login_refused, other_scheme

_log = logging.getLogger("rallypoint.coordinator")

ACCEPTS_PER_TURN: Final = 8
"""How many connections to accept from one socket before the event loop does other work. Each causes
about ten calls in the following turns of the loop: 32 of them repeatedly delayed heartbeats by 50
ms.
"""
LOOK_S: Final = 0.1
"""How often to check whether there is room again, in seconds."""
CROWDED_S: Final = 3.0
"""At the limit for strangers, a connection without a token for this many seconds is closed. A node
sends its token with its first bytes.
"""
LOG_S: Final = 60.0
"""The shortest time between two log lines that connections cannot be accepted, in seconds."""
STRANGER_READ_BYTES: Final = 4 * 1024
"""How many bytes to read at once from a connection that is not admitted. A node's request is
smaller. Event loops would read 256 KiB of a body before the head of the request is checked.
"""
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ListenerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`strangers_max`: connections that have not been admitted. `connections_max`: all of them.

    `stranger_s`: how long a connection may take to be admitted, in seconds.
    """

    strangers_max: int = 512
    connections_max: int = 200_000
    stranger_s: float = 10.0


def connections_max() -> int:
    """How many connections this process can have before it runs out of descriptors.

    A quarter of the descriptors, at least 32 and at most 512, is reserved for the ledger, files,
    and an agent's workers.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1_000_000
    return max(4, soft - min(512, max(32, soft // 4)))


class _Connection(socket.socket):
    """A connection's socket, with numbers as its family and type.

    socket.socket makes an enumeration member at each access. Five such accesses, here, in the event
    loop and in aiohttp, would take as long as all other work of accepting a connection.
    """

    family = socket.SocketType.family  # type: ignore[assignment]
    type = socket.SocketType.type  # type: ignore[assignment]

    @classmethod
    def accepted_by(cls, listening: socket.socket) -> _Connection:
        """The next connection. Raises OSError as `socket.accept` does."""
        fd, _ = listening._accept()  # type: ignore[attr-defined]
        family, kind = socket.SocketType.family, socket.SocketType.type
        return cls(family.__get__(listening), kind.__get__(listening), listening.proto, fd)


class Listener:
    """Accepts on bound sockets, in the running event loop.

    `new_protocol` makes the protocol of a connection. `count` returns the number of connections,
    including strangers, but not those that are being accepted. `is_welcome` gets the socket of a
    new connection and returns whether to accept it. `tls` returns the context for a new connection,
    None for one in clear. `on_refused` gets the address of a client whose certificate is not
    accepted, None if it is local, and why.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        new_protocol: Callable[[], asyncio.Protocol],
        count: Callable[[], int],
        limits: ListenerLimits,
        is_welcome: Callable[[socket.socket], bool] = lambda connection: True,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        on_refused: Callable[[str | None, str], None] = lambda peer, why: None,
    ) -> None:
        self._sockets = tuple(sockets)
        self._new_protocol = new_protocol
        self._count = count
        self._limits = limits
        self._is_welcome = is_welcome
        self._tls = tls
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        # This clock leaves out stalls, so that bytes that strangers sent meanwhile are read before
        # they are closed.
        self._clock = StallProofClock(self._loop.time)
        self._strangers: dict[_Stranger, None] = {}
        self._buffer = memoryview(bytearray(STRANGER_READ_BYTES))
        self._entering: set[asyncio.Task[None]] = set()
        self._open_at_most = 0
        self._is_reading = False
        self._is_closed = False
        self._looking: asyncio.TimerHandle | None = None
        self._not_before_s = 0.0

    def start(self) -> None:
        """Accept connections. The sockets must be listening."""
        self._read()

    def close(self) -> None:
        """Stop accepting. Idempotent. Open connections and the sockets belong to the caller."""
        self._is_closed = True
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._pause()

    async def entered(self) -> None:
        """Wait until each accepted connection has its transport, or has failed."""
        if self._entering:
            await asyncio.wait(self._entering)

    def admit(self, transport: asyncio.BaseTransport | None) -> None:
        """This connection has sent a valid token: it does not count as a stranger's any more."""
        protocol = transport.get_protocol() if transport is not None else None
        if isinstance(protocol, _Stranger):
            protocol.admit()

    # -- accepting -----------------------------------------------------------------------------

    def _read(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            for sock in self._sockets:
                self._loop.add_reader(sock, self._accept, sock)

    def _pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            for sock in self._sockets:
                if sock.fileno() >= 0:
                    self._loop.remove_reader(sock)
        self._look_soon()

    def _room(self) -> int:
        """How many connections may be accepted now."""
        # A count is O(connections). So count only if there would be no room even though no
        # connection had ended since the last count.
        if self._open_at_most >= self._limits.connections_max:
            self._open_at_most = self._count() + len(self._entering)
        strangers = self._limits.strangers_max - len(self._strangers)
        return min(strangers, self._limits.connections_max - self._open_at_most)

    def _accept(self, sock: socket.socket) -> None:
        room = self._room()
        if room <= 0:
            self._pause()
            return
        for _ in range(min(room, ACCEPTS_PER_TURN)):
            try:
                connection = _Connection.accepted_by(sock)
                self._open_at_most += 1
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                self._out_of_descriptors(error)
                return
            if not self._is_welcome(connection):
                connection.close()
                continue
            connection.setblocking(False)
            # It is a stranger from now on: a TLS handshake that does not end takes up room, too.
            stranger = self._new_stranger(connection)
            task = self._loop.create_task(self._enter(connection, stranger))
            self._look_soon()
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)

    async def _enter(self, connection: socket.socket, stranger: _Stranger) -> None:
        where = None
        try:
            where = connection.getpeername()
            context = self._tls()
            limit_s = None if context is None else self._limits.stranger_s
            await self._loop.connect_accepted_socket(
                lambda: stranger, connection, ssl=context, ssl_handshake_timeout=limit_s
            )
        except ssl.SSLCertVerificationError as error:
            # asyncio does not send the alert, so the client does not learn the reason.
            why = f"its certificate is not accepted: {error.verify_message}"
            peer = str(where[0]) if isinstance(where, tuple) else None  # else it is local
            login_refused(peer, why, logging.WARNING)
            self._on_refused(peer, why)
        except OSError as error:
            if isinstance(error, ssl.SSLError) and error.reason == "HTTP_REQUEST":
                other_scheme(str(where[0]) if isinstance(where, tuple) else None, has_tls=True)
            _log.debug("a connection ended before it was accepted: %s", error)
        finally:
            stranger.end_entering()

    def _new_stranger(self, connection: socket.socket) -> _Stranger:
        now_s = self._clock.now_s()
        owner = self._new_protocol()
        stranger = _Stranger(self._strangers, owner, now_s, self._buffer, connection)
        self._strangers[stranger] = None
        return stranger

    def _out_of_descriptors(self, error: OSError) -> None:
        self._pause()
        now_s = self._clock.now_s()
        self._not_before_s = now_s + 1.0
        what = "no connection can be accepted: %s; raise this process's limit on open files"
        _log.error(what, error.strerror, extra=logs.limit(1, LOG_S))

    # -- strangers -----------------------------------------------------------------------------

    def _look_soon(self) -> None:
        """Check in LOOK_S.

        Call it only if there is something to check: an idle process has no timer.
        """
        if self._looking is None and not self._is_closed:
            self._looking = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """Close strangers whose time is over, and accept again if there is room."""
        self._looking = None
        if self._strangers or not self._is_reading:
            self._look_soon()
        now_s = self._clock.now_s()
        is_crowded = len(self._strangers) >= self._limits.strangers_max
        limit_s = min(CROWDED_S, self._limits.stranger_s) if is_crowded else self._limits.stranger_s
        for stranger in list(self._strangers):  # the oldest first
            if now_s - stranger.since_s < limit_s:
                break
            stranger.cut()
        if not self._is_reading and now_s >= self._not_before_s and self._room() > 0:
            self._read()


class _Stranger(asyncio.BufferedProtocol):
    """The protocol of a connection until it is admitted. It passes all calls on to its owner.

    With TLS there is no transport until the handshake has ended.
    """

    def __init__(
        self,
        strangers: dict[_Stranger, None],
        owner: asyncio.Protocol,
        since_s: float,
        buffer: memoryview,
        connection: socket.socket,
    ) -> None:
        """`buffer`: shared by all strangers of the listener.

        Its bytes are passed on before the event loop reads again.
        """
        self.since_s = since_s
        self._buffer = buffer
        self._strangers = strangers
        self._owner = owner
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._is_cut = False

    def admit(self) -> None:
        self._strangers.pop(self, None)
        if self._transport is not None:
            self._transport.set_protocol(self._owner)

    def cut(self) -> None:
        self._strangers.pop(self, None)
        self._is_cut = True
        if self._transport is not None:
            self._transport.abort()
        else:
            # The event loop owns the handshake, and reads the end of the connection next.
            with contextlib.suppress(OSError):  # the other side has closed it
                self._connection.shutdown(socket.SHUT_RDWR)

    def end_entering(self) -> None:
        """There is a transport now, or there will be none."""
        if self._transport is None:
            self._strangers.pop(self, None)
            self._connection.close()

    # -- calls that are passed on --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have these methods, but do not derive from asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._owner.connection_made(transport)
        if self._is_cut:  # as its handshake ended
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._owner.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool | None:
        return self._owner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._strangers.pop(self, None)
        self._owner.connection_lost(error)
        # A transport of asyncio's own loop refers to itself by this method, which is not called any
        # more. Break this cycle, which would otherwise last until the garbage collector runs. With
        # strangers that connect and close without pause, collections took 160 ms, and more in a
        # program that hosts a coordinator.
        transport: Any = self._transport
        if hasattr(transport, "_read_ready_cb"):
            transport._read_ready_cb = None

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()


def allow_many_descriptors() -> None:
    """Raise the soft limit on open files to the hard one: each connection needs a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS: "unlimited" is refused
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
