"""A store over TCP where there is no torch: what node rank 0 of a `static` rendezvous serves.

The engine is the round's store of the core; here are its frames, its connections and its deadlines.
A frame is four bytes of length, big-endian, and as many of msgpack (as in wire/local.py). Both
sides greet first, so that neither takes a store of torch's for this one: torch's server says
nothing until it is spoken to, and refuses what is not its own.

As with torch's TCPStore, whoever reaches the port may use the store: it has no token. What arrives
is decoded into typed, bounded values or refused (R12); no peer takes more than the limits below.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import threading
import weakref
from typing import Final, TypeAlias

import msgspec

from rallypoint.client import forking
from rallypoint.client.blocking import Portal
from rallypoint.core.store import Answer, RoundStore, StoreLimits
from rallypoint.wire import local
from rallypoint.wire.messages import (
    ANSWER_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    UNDECODABLE,
    MalformedError,
)

VERSION: Final = 1
CLIENTS_MAX: Final = 4096
"""How many connections a server holds, unless told otherwise."""
GREETING_BYTES_MAX: Final = 256
GREETING_TIMEOUT_S: Final = 10.0
"""How long a process that has connected may take to say that it speaks this protocol."""
LIMITS: Final = StoreLimits(waiting_calls_per_node_max=4096)


class Greeting(local.LocalMessage, frozen=True, tag="store"):
    """The first message of either side. `server_id` is drawn when a server starts; "" of a client.

    A client that comes back finds by it whether this is still the store that it knew.
    """

    version: int
    server_id: str = ""


FromClient: TypeAlias = Greeting | local.Call | local.Cancel
FromServer: TypeAlias = Greeting | local.Answer | local.Denied

_from_client: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)
_from_server: msgspec.msgpack.Decoder[FromServer] = msgspec.msgpack.Decoder(FromServer)


def decode_from_client(body: bytes) -> FromClient:
    """A client's message, without its frame. Raises MalformedError."""
    try:
        return _from_client.decode(body)
    except UNDECODABLE as error:
        raise MalformedError(str(error)) from error


def decode_from_server(body: bytes) -> FromServer:
    """A server's message, without its frame. Raises MalformedError."""
    try:
        return _from_server.decode(body)
    except UNDECODABLE as error:
        raise MalformedError(str(error)) from error


class StoreServer:
    """The store and its connections. All methods are for the event loop that started it."""

    def __init__(self, clients_max: int = CLIENTS_MAX) -> None:
        self.server_id = secrets.token_hex(16)
        self.port = 0
        # The engine serves those who have a seat: each connection takes a free one.
        seats = [(f"client-{number}", number, 1) for number in range(clients_max)]
        self._engine = RoundStore(seats, LIMITS)
        self._free = [name for name, _, _ in reversed(seats)]
        self._links: dict[str, _Link] = {}
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._alarm: asyncio.TimerHandle | None = None

    async def start(self, port: int) -> None:
        """Listen on every address of this machine; port 0 is any. `port` says which it became.

        Raises OSError: EADDRINUSE if the port is somebody's.
        """
        from rallypoint.coordinator.server import bind  # loads aiohttp, which only this needs

        sock = bind(None, port)
        forking.close_in_children(sock)
        self.port = sock.getsockname()[1]
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(lambda: _Link(self), sock=sock)
        forking.close_all_in_children(self)

    def close(self) -> None:
        """Stop listening and cut every connection off. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for link in list(self._links.values()):
            link.cut()
        if self._alarm is not None:
            self._alarm.cancel()

    def let_go(self) -> None:
        """Close, from any thread, without waiting for it."""
        if self._loop is not None and self._pid == os.getpid():  # not a child made by fork()
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the server
                self._loop.call_soon_threadsafe(self.close)

    def filenos(self) -> list[int]:
        """The connections' descriptors, for `forking`."""
        return [link.fileno() for link in self._links.values()]

    # -- for links

    def admit(self, link: _Link) -> str:
        """A seat for a connection; "" if there is none."""
        if not self._free:
            return ""
        seat = self._free.pop()
        self._links[seat] = link
        return seat

    def forget(self, seat: str) -> None:
        """The connection is gone, and with it whatever it waited for."""
        del self._links[seat]
        self._engine.forget_node(seat)
        self._free.append(seat)

    def apply(self, seat: str, call: local.Call) -> None:
        """Carry a call out, and send the answers that it brings about."""
        now_s = asyncio.get_running_loop().time()
        self._send(self._engine.apply(seat, call.request_id, call.op, call.timeout_s, now_s))
        self._set_alarm()

    def acknowledge(self, seat: str, up_to: int, still_open: tuple[int, ...]) -> None:
        """Forget what was answered: a connection is not resumed, so nothing is asked for twice."""
        self._engine.acknowledge(seat, up_to, still_open)

    def _send(self, answers: list[Answer]) -> None:
        for answer in answers:
            self._links[answer.node].answer(local.Answer(answer.request_id, answer.result))

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        deadline_s = self._engine.next_deadline_s()
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_at(deadline_s, self._expire) if deadline_s is not None else None

    def _expire(self) -> None:
        self._send(self._engine.expire(asyncio.get_running_loop().time()))
        self._set_alarm()


class SharedServer:
    """A server in this process's portal, for as long as somebody holds this. See serve_at."""

    def __init__(self, portal: Portal, port: int) -> None:
        server = StoreServer()
        portal.run(server.start(port))
        self.port = server.port
        weakref.finalize(self, server.let_go).atexit = False


_shared: weakref.WeakValueDictionary[int, SharedServer] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def serve_at(portal: Portal, port: int) -> SharedServer:
    """The server at this port, one for all in this process who ask. 0 is a port of its own.

    Raises OSError: EADDRINUSE if the port is another process's.
    """
    with _sharing:
        found = _shared.get(port)
        if found is None:
            found = SharedServer(portal, port)
            _shared[found.port] = found
        return found


def _in_forked_child() -> None:
    """The parent's servers are not the child's."""
    global _sharing
    _sharing = threading.Lock()
    _shared.clear()


os.register_at_fork(after_in_child=_in_forked_child)


class _Link(asyncio.Protocol):
    """One connection. What it says is bounded, and what it does not read too."""

    def __init__(self, server: StoreServer) -> None:
        self._server = server
        self._unframer = local.Unframer(GREETING_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._seat = ""
        self._has_greeted = False
        self._greeting_overdue: asyncio.TimerHandle | None = None
        self._last_id = -1
        self._open: dict[int, None] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # A peer whose machine has gone must not hold its seat for ever.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._seat = self._server.admit(self)
        if not self._seat:
            self._refuse("this store has as many connections as it takes")
            return
        self._send(Greeting(VERSION, self._server.server_id))
        loop = asyncio.get_running_loop()
        self._greeting_overdue = loop.call_later(GREETING_TIMEOUT_S, self.cut)

    def connection_lost(self, error: Exception | None) -> None:
        if self._greeting_overdue is not None:
            self._greeting_overdue.cancel()
        if self._seat:
            self._server.forget(self._seat)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._unframer.feed(data):
                self._take(decode_from_client(body))
        except MalformedError as error:
            self._refuse(str(error))

    def answer(self, answer: local.Answer) -> None:
        """Send the result of a call; the engine need not remember it."""
        self._send(answer)
        self._settled(answer.request_id)

    def cut(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def fileno(self) -> int:
        """The descriptor; -1 once it is closed."""
        found = self._transport.get_extra_info("socket") if self._transport else None
        return found.fileno() if found is not None else -1

    def _take(self, message: FromClient) -> None:
        if self._is_closing():
            return
        if not self._has_greeted:
            self._take_greeting(message)
            return
        match message:
            case local.Call(request_id) if request_id > self._last_id:
                self._last_id = request_id
                self._open[request_id] = None
                self._server.apply(self._seat, message)
            case local.Cancel(request_id):
                self._settled(request_id)
            case _:
                raise MalformedError("a second greeting, or a number of a request that was used")

    def _take_greeting(self, message: FromClient) -> None:
        if not isinstance(message, Greeting):
            raise MalformedError("the first message is no greeting")
        if message.version != VERSION:
            raise MalformedError(f"version {message.version}, where {VERSION} is spoken")
        self._has_greeted = True
        self._unframer.bytes_max = MESSAGE_BYTES_MAX
        if self._greeting_overdue is not None:
            self._greeting_overdue.cancel()

    def _settled(self, request_id: int) -> None:
        self._open.pop(request_id, None)
        self._server.acknowledge(self._seat, self._last_id, tuple(self._open))

    def _refuse(self, why: str) -> None:
        self._send(local.Denied(why))
        if self._transport is not None:
            self._transport.close()

    def _send(self, message: local.LocalMessage) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(local.encode(message))
        # Nobody waits for a peer that does not read; it holds one large answer at most.
        if self._transport.get_write_buffer_size() > ANSWER_BYTES_MAX:
            self.cut()

    def _is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()
