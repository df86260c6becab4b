"""A store over TCP, which node rank 0 of a `static` rendezvous serves without torch.

Keys and waits are handled by the core's store of a round. This file has frames, connections and
deadlines. A frame is four bytes of length, big-endian, and a message in msgpack (as in
wire/local.py). Both sides send a greeting first, so that neither mistakes one of torch's stores for
this one: torch's server never sends first, and refuses other protocols.

As with torch's TCPStore, the store has no token: every process that reaches the port may use it.
Received bytes are decoded into typed, bounded values, or refused (R12). The limits below apply to
each peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import threading
import weakref
from collections import deque
from typing import Final, TypeAlias, cast

import msgspec

from rallypoint import settings
from rallypoint.client import fork_safety
from rallypoint.client.blocking import Portal
from rallypoint.coordinator.listener import Listener, ListenerLimits, connections_max
from rallypoint.coordinator.outgoing import Begin, Outgoing, Pins, Whole
from rallypoint.coordinator.turns import Turns
from rallypoint.core.budget import MemoryBudget, MemoryShare
from rallypoint.core.store import LIMIT, Answer, StoreFailure, StoreLimits
from rallypoint.core.store.store import RoundStore
from rallypoint.memory import default_budget
from rallypoint.wire import local, parts
from rallypoint.wire.messages import (
    MESSAGE_BYTES_MAX,
    UNDECODABLE,
    MalformedError,
)

VERSION: Final = 1
FULL: Final = "this store already has its maximum of connections"
CLIENTS_MAX: Final = 4096
"""How many connections a server holds by default."""
GREETING_BYTES_MAX: Final = 256
GREETING_TIMEOUT_S: Final = 10.0
"""How many seconds a connected process may take to greet."""
LIMITS: Final = StoreLimits(waiting_calls_per_node_max=4096, waiting_bytes_per_node_max=4 * 1024**2)
STRANGERS_MAX: Final = 128
"""How many connections may be open without a greeting. More wait in the listener's backlog."""
CALLS_PER_TURN: Final = 16
"""How many messages of one connection are handled before the turns of the others."""
OPEN_FEW: Final = 16
"""With at most this many open calls, each answer is acknowledged at once, which takes as many
steps.
"""
UNREAD_BYTES_MAX: Final = 1024**2
"""How many bytes may wait for a client that does not read. Large values count only with their
frames.
"""
UNREAD_S: Final = 60.0
"""How many seconds a client may read nothing while data waits for it."""
UNSENT_BYTES_MAX: Final = 32 * 1024
TURN_BYTES: Final = 256 * 1024
CONNECTION_BYTES: Final = 8 * 1024
PARTIAL_FROM_BYTES: Final = 16 * 1024
"""A smaller incomplete message counts as part of its connection's memory."""


class Greeting(local.LocalMessage, frozen=True, tag="store"):
    """The first message of each side. `server_id`: drawn when a server starts; "" from a client.

    A client that reconnects recognises by it whether this is the same store.
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
        # The store serves nodes by name, so each connection gets a free name, its seat.
        seats = [(f"client-{number}", number, 1) for number in range(clients_max)]
        self._engine = RoundStore(seats, LIMITS)
        self._free = [name for name, _, _ in reversed(seats)]
        self._links: dict[str, _Link] = {}
        self._connected: dict[_Link, None] = {}  # including those that have not greeted
        given: int | None = settings.resolve("memory").value
        self.budget = MemoryBudget(given or default_budget(is_embedded=True).bytes)
        self._share = self.budget.share("the store")
        self._kept = 0
        self.turns = Turns()
        self._sock: socket.socket | None = None
        self._listener: Listener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._alarm: asyncio.TimerHandle | None = None

    async def start(self, port: int) -> None:
        """Listen on all addresses of this machine. Port 0: any; `port` has the chosen one.

        Raises OSError: EADDRINUSE if the port is taken.
        """
        from rallypoint.net import bind

        sock = bind(None, port)
        fork_safety.close_in_children(sock)
        self.port = sock.getsockname()[1]
        self._loop = asyncio.get_running_loop()
        self.turns.loop = self._loop
        self._sock = sock
        limits = ListenerLimits(
            strangers_max=STRANGERS_MAX,
            connections_max=connections_max(),
            stranger_s=GREETING_TIMEOUT_S,
        )
        self._listener = Listener([sock], lambda: _Link(self), lambda: len(self._connected), limits)
        self._listener.start()
        fork_safety.close_all_in_children(self)

    def close(self) -> None:
        """Stop listening and cut all connections. Idempotent."""
        if self._listener is not None:
            self._listener.close()
        if self._sock is not None:
            self._sock.close()
        for link in list(self._connected):
            link.cut()
        if self._alarm is not None:
            self._alarm.cancel()

    def let_go(self) -> None:
        """Close without waiting, from any thread."""
        if self._loop is not None and self._pid == os.getpid():  # not a child made by fork()
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the server too
                self._loop.call_soon_threadsafe(self.close)

    def filenos(self) -> list[int]:
        """See fork_safety.Group."""
        listening = [self._sock.fileno()] if self._sock is not None else []
        return listening + [link.fileno() for link in self._connected]

    # -- for links

    def connected(self, link: _Link) -> None:
        """A connection is open."""
        self._connected[link] = None

    def disconnected(self, link: _Link) -> None:
        """It is closed."""
        self._connected.pop(link, None)

    @property
    def is_full(self) -> bool:
        """Whether all seats are taken."""
        return not self._free

    def admit(self, link: _Link, transport: asyncio.BaseTransport) -> str:
        """A seat for a connection that has greeted; "" if none is free."""
        if self._listener is not None:
            self._listener.admit(transport)
        if not self._free:
            return ""
        seat = self._free.pop()
        self._links[seat] = link
        return seat

    def forget(self, seat: str) -> None:
        """The connection is closed: free its seat, and cancel its calls."""
        del self._links[seat]
        self._engine.forget_node(seat)
        self._count()
        self._free.append(seat)

    def apply(self, seat: str, call: local.Call) -> None:
        """Apply a call, and send the resulting answers."""
        now_s = asyncio.get_running_loop().time()
        if self._share.used > self.budget.surely:
            excess = self._share.excess(max(0, self._engine.growth_of(call.op)))
            if excess is not None:
                full = StoreFailure(LIMIT, f"{excess}; set RALLYPOINT_MEMORY where it runs")
                self._links[seat].answer(local.Answer(call.request_id, full))
                return
        self._send(self._engine.apply(seat, call.request_id, call.op, call.timeout_s, now_s))
        self._count()
        self._set_alarm()

    def acknowledge(self, seat: str, up_to: int, still_open: tuple[int, ...]) -> None:
        """Acknowledge answers to the store: none is needed twice, as no connection is resumed."""
        self._engine.acknowledge(seat, up_to, still_open)
        self._count()

    def _count(self) -> None:
        kept = self._engine.footprint()
        self._share.add(kept - self._kept)
        self._kept = kept

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
        self._count()
        self._set_alarm()


class SharedServer:
    """A server in this process's portal, which is open while this object lives. See serve_at."""

    def __init__(self, portal: Portal, port: int) -> None:
        server = StoreServer()
        portal.run(server.start(port))
        self.port = server.port
        weakref.finalize(self, server.let_go).atexit = False


_ownership: weakref.WeakValueDictionary[int, SharedServer] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def serve_at(portal: Portal, port: int) -> SharedServer:
    """The server at this port, shared by all callers in this process. 0: a new one at any port.

    Raises OSError: EADDRINUSE if another process has the port.
    """
    with _sharing:
        found = _ownership.get(port)
        if found is None:
            found = SharedServer(portal, port)
            _ownership[found.port] = found
        return found


def _in_forked_child() -> None:
    """Forget the parent's servers."""
    global _sharing
    _sharing = threading.Lock()
    _ownership.clear()


os.register_at_fork(after_in_child=_in_forked_child)


class _Link(asyncio.Protocol):
    """One connection: its greeting, its calls, and the limits for its input.

    It must not keep answers that wait for the client: `_Output` does.
    """

    def __init__(self, server: StoreServer) -> None:
        self._server = server
        self._unframer = local.Unframer(GREETING_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._seat = ""
        self._has_greeted = False
        self._greeting_overdue: asyncio.TimerHandle | None = None
        self._last_id = -1
        self._open: dict[int, None] = {}
        self._settled_since = 0
        self._share = server.budget.share("a client of the store")
        self._partial = 0
        self._bodies: deque[bytes] = deque()
        self._output: _Output

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have these methods, but do not derive from asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._output = _Output(self._transport, self._share, self._server.turns, self)
        self._server.connected(self)
        self._share.add(CONNECTION_BYTES)
        # Keepalive, because a peer whose machine is down must not keep its seat for ever.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        if self._server.is_full:
            self._refuse(FULL)
            return
        self._output.send(local.encode(Greeting(VERSION, self._server.server_id)))
        loop = asyncio.get_running_loop()
        self._greeting_overdue = loop.call_later(GREETING_TIMEOUT_S, self.cut)

    def connection_lost(self, error: Exception | None) -> None:
        if self._greeting_overdue is not None:
            self._greeting_overdue.cancel()
        self._output.close()
        self._bodies.clear()
        self._server.disconnected(self)
        if self._seat:
            self._server.forget(self._seat)
        self._share.close()

    # -- input ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        try:
            self._bodies.extend(self._unframer.feed(data))
        except MalformedError as error:
            self._take_some()
            self._refuse(str(error))
            return
        self._count_partial()
        if self._take_some() and self._transport is not None:
            self._transport.pause_reading()
            self._server.turns.later(self, self._go_on)

    def _count_partial(self) -> None:
        """Count an incomplete large message. If there is no memory for it, cut the connection."""
        size = self._unframer.kept_bytes
        size = size if size > PARTIAL_FROM_BYTES else 0
        if size != self._partial:
            self._share.add(size - self._partial)
            self._partial = size
            excess = self._share.excess(0) if size else None
            if excess is not None:
                self._refuse(str(excess))

    def _take_some(self) -> bool:
        """Handle as many messages as one turn allows. Returns whether more are left."""
        try:
            for _ in range(CALLS_PER_TURN):
                if not self._bodies or self._is_closing():
                    break
                self._take(decode_from_client(self._bodies.popleft()))
        except MalformedError as error:
            self._refuse(str(error))
        if self._is_closing():
            self._bodies.clear()
        return bool(self._bodies)

    def _go_on(self) -> bool:
        if self._take_some():
            return True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        return False

    def _take(self, message: FromClient) -> None:
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
                raise MalformedError("a second greeting, or a request number that was already used")

    def _take_greeting(self, message: FromClient) -> None:
        if not isinstance(message, Greeting):
            raise MalformedError("the first message is not a greeting")
        if message.version != VERSION:
            raise MalformedError(f"version {message.version}; this store uses version {VERSION}")
        self._has_greeted = True
        self._unframer.bytes_max = MESSAGE_BYTES_MAX
        if self._greeting_overdue is not None:
            self._greeting_overdue.cancel()
        assert self._transport is not None
        self._seat = self._server.admit(self, self._transport)
        if not self._seat:
            self._refuse(FULL)

    # -- output --------------------------------------------------------------------------------

    def answer(self, answer: local.Answer) -> None:
        """Send the result of a call, and acknowledge it to the store."""
        if parts.is_large(answer.result):
            self._output.send_parts(parts.local_answer_parts(answer))
        else:
            self._output.send(local.encode(answer))
        self._settled(answer.request_id)

    def _settled(self, request_id: int) -> None:
        """Acknowledge less often if many calls are open, because each time takes as many steps."""
        self._open.pop(request_id, None)
        self._settled_since += 1
        if self._settled_since >= len(self._open) or len(self._open) <= OPEN_FEW:
            self._settled_since = 0
            self._server.acknowledge(self._seat, self._last_id, tuple(self._open))

    def pause_writing(self) -> None:
        self._output.paused()

    def resume_writing(self) -> None:
        self._output.resumed()

    def _refuse(self, why: str) -> None:
        self._output.send(local.encode(local.Denied(why)))
        if self._transport is not None:
            self._transport.close()

    def cut(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def fileno(self) -> int:
        """The descriptor; -1 if it is closed."""
        found = self._transport.get_extra_info("socket") if self._transport else None
        return found.fileno() if found is not None else -1

    def _is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()


class _Output:
    """The messages to one client, sent as fast as it reads. A client that reads nothing is cut.

    It must not depend on what the messages say, or on whether the client was admitted.
    """

    def __init__(
        self, transport: asyncio.Transport, share: MemoryShare, turns: Turns, link: _Link
    ) -> None:
        self._link = link
        self._transport = transport
        self._share = share
        self._turns = turns
        self._pins = Pins(share.add)
        self._queue: Outgoing | None = None
        """What waits until the client has read more; None if nothing does."""
        self._is_paused = False
        self._has_turn = False
        self._unread = 0
        self._looking: asyncio.TimerHandle | None = None

    def send(self, message: bytes) -> None:
        """Send a message, after those that wait. Nothing is sent while the connection closes."""
        if self._transport.is_closing():
            return
        if self._queue is None:
            self._transport.write(message)
        else:
            self._wait(message)

    def send_parts(self, message: parts.Parts) -> None:
        """Send a large message, which is made as the client reads it."""
        if not self._transport.is_closing():
            self._wait(message)
            self._send_on()

    def paused(self) -> None:
        """The transport's buffer is full."""
        self._is_paused = True
        if self._queue is None:
            self._queue = Outgoing(self._share.add, self._pins)
        self._unread = self._transport.get_write_buffer_size()
        self._looking = asyncio.get_running_loop().call_later(UNREAD_S, self._look)

    def resumed(self) -> None:
        """The transport's buffer has room again."""
        self._is_paused = False
        if self._looking is not None:
            self._looking.cancel()
        self._send_on()

    def close(self) -> None:
        """The connection has ended."""
        if self._looking is not None:
            self._looking.cancel()
        if self._queue is not None:
            self._queue.close()
            self._queue = None

    def _wait(self, message: bytes | parts.Parts) -> None:
        if self._queue is None:
            self._queue = Outgoing(self._share.add, self._pins)
        self._queue.put(message)
        is_too_much = self._queue.bytes > UNREAD_BYTES_MAX
        if is_too_much or (self._is_paused and self._share.excess(0) is not None):
            self._transport.abort()

    def _look(self) -> None:
        """Cut a client that has read nothing since the last check."""
        unread = self._transport.get_write_buffer_size()
        if unread >= self._unread:
            self._transport.abort()
            return
        self._unread = unread
        self._looking = asyncio.get_running_loop().call_later(UNREAD_S, self._look)

    def _send_on(self) -> None:
        if not self._has_turn and self._send_some():
            self._has_turn = True
            self._turns.later(self._link, self._send_some)  # in one line with its input

    def _send_some(self) -> bool:
        """Send as much as the client reads and one turn allows. Returns whether to continue."""
        left = TURN_BYTES
        while not self._is_paused and self._queue is not None and not self._transport.is_closing():
            if left <= 0:
                return True
            match self._queue.next():
                case None:
                    self._queue = None
                case Begin():
                    pass  # The head contains the length.
                case Whole(piece) | piece:
                    left -= len(piece)
                    self._transport.write(piece)
        self._has_turn = False
        return False
