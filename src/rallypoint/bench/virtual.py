"""A virtual node: like any other node for the coordinator, and cheap for its own process.

The machine (`client/machine.py`) and the typed messages are those of a real node. Only the
WebSocket is not: a few lines here write and read its frames. So thousands of nodes fit into one
process, and the coordinator is measured rather than the nodes. The frames follow RFC 6455, with a
masking key of zeros, which is valid and needs no masking.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Final, cast

from rallypoint.bench.counting import FleetError
from rallypoint.client import actions as act
from rallypoint.client import machine as m
from rallypoint.client.sockets import reset_on_close
from rallypoint.core.reasons import Waiting
from rallypoint.core.store import StoreOp, StoreResult
from rallypoint.core.values import (
    SECRET_BYTES,
    Address,
    Change,
    CloseRecord,
    Failure,
    NodeInfo,
    Outcome,
    RunSettings,
)
from rallypoint.security import first_look
from rallypoint.security.token_form import credential, parse
from rallypoint.wire import messages as wire

SILENCE_S: Final = 120.0
"""Long enough, in seconds, that the nodes of a busy process do not give up their coordinator."""
BOOTSTRAP: Final = Address("127.0.0.1", 1)
"""Nothing listens there."""
EARLY: Final = Address("127.0.0.1", 2)
"""Nothing listens there either. Used to make a call again with another address."""
SocketAddress = tuple[int, tuple[Any, ...]]
"""A family, and the address for `socket.connect`."""
_CLOSE: Final = 8
_PING: Final = 9
_DATA: Final = (0, 1, 2)
_OF_STEPS: Final = (wire.TakesPart, wire.Draining, wire.Drains, wire.Promise, wire.StopAt)


class VirtualNode(asyncio.Protocol):
    """One node on one connection. All methods are for the event loop that it is in.

    `on_attached`, `on_formed`, `on_ended`, `on_closed`, `on_lost`, `on_standby` and, after
    `ask_waiting`, `on_waiting` are called when these things happen. `sent`, `received`,
    `sent_bytes` and `received_bytes` count WebSocket frames and their payloads; `beats` and
    `beats_bytes` count those of both directions that are heartbeats and their answers, and
    `step_messages` those that are about drains and steps.
    `round_trips_s`: a list to which the seconds from each heartbeat to its answer are added; None:
    they are not measured.
    """

    def __init__(self, run_id: str, info: NodeInfo, settings: RunSettings, token: str = "") -> None:
        self.machine = m.NodeMachine(
            run_id,
            info,
            settings,
            silence_s=SILENCE_S,
            software="bench",
            resume_secret=secrets.token_bytes(SECRET_BYTES),
        )
        self.on_attached: Callable[[VirtualNode], None] = lambda node: None
        self.on_formed: Callable[[VirtualNode], None] = lambda node: None
        self.on_ended: Callable[[VirtualNode, Change], None] = lambda node, change: None
        self.on_closed: Callable[[VirtualNode, CloseRecord], None] = lambda node, close: None
        self.on_lost: Callable[[VirtualNode, str], None] = lambda node, why: None
        self.on_standby: Callable[[VirtualNode], None] = lambda node: None
        self.on_waiting: Callable[[VirtualNode, Waiting | None], None] = lambda node, why: None
        self.on_beat: Callable[[], None] = lambda: None
        self.on_step_decided: Callable[[VirtualNode], None] = lambda node: None
        self.reports = False
        """Whether its workers report a step once a second."""
        self.promises: int | None = None
        """The step that it promises when it is asked; None: it does not answer."""
        self.told_round = 0
        """The number of the last round whose end this node has received."""
        self.answers: dict[int, Callable[[StoreResult], None]] = {}
        self.sent = self.received = self.sent_bytes = self.received_bytes = 0
        self.beats = self.beats_bytes = self.step_messages = 0
        self.round_trips_s: list[float] | None = None
        self._beat_said_s: float | None = None
        self.transport: asyncio.Transport | None = None
        self.sock: socket.socket | None = None
        """The connection's socket, from `connect`."""
        self.token = token
        self._is_open = False
        self._rest = b""
        self._parts: list[bytes] = []

    # -- calls of the fleet ----------------------------------------------------------------------

    def ready(self, bootstrap: Address = BOOTSTRAP) -> None:
        """Ask for the next round. A second call with another address replaces the first."""
        self._act(self.machine.ready(bootstrap, 1))

    def failed(self, failure: Failure) -> None:
        """A worker failed: the round ends for all."""
        self._act(self.machine.failed(failure))

    @property
    def node_rank(self) -> int | None:
        """Its rank in the last round; None before the first."""
        seat = self.machine.seat
        return seat.node_rank if seat is not None else None

    def close(self) -> None:
        """End the run for all."""
        self._act(self.machine.close(Outcome.SUCCEEDED, "the benchmark is over"))

    def goodbye(self) -> None:
        """Leave the run."""
        self._act(self.machine.goodbye("the benchmark is over"))

    def call(self, op: StoreOp, timeout_s: float, answered: Callable[[StoreResult], None]) -> int:
        """Make a call of the round's store. Returns its number, for `cancel`."""
        request_id, actions = self.machine.call(op, timeout_s)
        self.answers[request_id] = answered
        self._act(actions)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Cancel this call; its answer is ignored."""
        self.answers.pop(request_id, None)
        self._act(self.machine.cancel(request_id))

    def beat(self) -> None:
        """Send a heartbeat now. `on_beat` is called at the next answer to a heartbeat."""
        self._act([act.Send(wire.Heartbeat(self.machine.stamp))])

    def takes_part(self) -> None:
        """Its workers ask at each step whether to stop."""
        self._act(self.machine.takes_part())

    def drains(self, left_s: float) -> None:
        """It is going to leave, at a step on which all agree."""
        self._act(self.machine.drains("the benchmark drains it", left_s, time.monotonic()))

    def ask_waiting(self) -> None:
        """Ask why there is no round yet."""
        self._act(self.machine.ask_waiting()[1])

    def tick(self, now_s: float) -> None:
        """Let the machine send its heartbeat, if that is due."""
        if self.reports:
            step = int(now_s)
            self.machine.progress.advanced(step, step)
        self._act(self.machine.tick(now_s))

    def abort(self) -> None:
        """End the connection by a reset, like a node whose process goes on."""
        if self.sock is not None:
            reset_on_close(self.sock)
        self.die()

    def die(self) -> None:
        """End the connection by a FIN without a goodbye, as a killed process's kernel does."""
        if self.transport is not None:
            self.transport.abort()

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the WebSocket."""
        self.transport = cast(asyncio.Transport, transport)
        host, port = self.transport.get_extra_info("peername")[:2]
        shown = credential(self.token)
        authorization = f"Authorization: Bearer {shown}\r\n" if shown else ""
        self.transport.write(
            (
                f"GET {wire.ATTACH_PATH} HTTP/1.1\r\nHost: {Address(host, port)}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
                f"{authorization}\r\n"
            ).encode()
        )

    def data_received(self, data: bytes) -> None:
        """Read received bytes, and pass on whole frames."""
        data = self._rest + data if self._rest else data
        if not self._is_open:
            data = self._handshake(data)
        begin, end = 0, len(data)
        while end - begin >= 2:
            head = 2
            length = data[begin + 1]  # A server does not mask: the upper bit is 0.
            if length == 126:
                head = 4
                length = int.from_bytes(data[begin + 2 : begin + 4]) if end - begin >= 4 else end
            elif length == 127:
                head = 10
                length = int.from_bytes(data[begin + 2 : begin + 10]) if end - begin >= 10 else end
            stop = begin + head + length
            if stop > end:
                break
            self._frame(data[begin], data[begin + head : stop])
            begin = stop
        self._rest = data[begin:] if begin < end else b""

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self.transport = self.sock = None
        self.machine.disconnected()
        self.on_lost(self, str(error or "the coordinator closed the connection"))

    # -- helpers ---------------------------------------------------------------------------------

    def _handshake(self, data: bytes) -> bytes:
        """The bytes after the handshake's answer; none while that is not complete."""
        head, separator, rest = data.partition(b"\r\n\r\n")
        if not separator:
            self._rest = data
            return b""
        self._rest = b""
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if " 101 " not in status:
            self.on_lost(self, f"no WebSocket: {status}")
            self.abort()
            return b""
        self._is_open = True
        self._act(self.machine.connected(time.monotonic(), self._source()))
        return rest

    def _source(self) -> Address:
        assert self.transport is not None
        return Address(*self.transport.get_extra_info("sockname")[:2])

    def _frame(self, first: int, payload: bytes) -> None:
        opcode = first & 0x0F
        if opcode == _PING:
            self._write(0x8A, payload)
        elif opcode == _CLOSE:
            self._write(0x88, payload[:2])
        elif opcode in _DATA:
            self.received += 1
            self.received_bytes += len(payload)
            if first & 0x80 and not self._parts:
                self._message(payload)
            else:
                self._parts.append(payload)
                if first & 0x80:
                    parts, self._parts = self._parts, []
                    self._message(b"".join(parts))

    def _message(self, payload: bytes) -> None:
        message = wire.decode_from_coordinator(payload)
        self._count(message, payload)
        self._act(self.machine.received(message, time.monotonic()))
        if isinstance(message, wire.Beat):
            self.on_beat()

    def _act(self, actions: list[act.Action]) -> None:
        for action in actions:
            match action:
                case act.Send():
                    payload = wire.encode(action.message)
                    self._count(action.message, payload)
                    self._send(payload)
                case act.RoundFormed():
                    self.on_formed(self)
                case act.RoundEnded():
                    if (
                        action.change.round != self.told_round
                    ):  # The second time, it brings the cause.
                        self.told_round = action.change.round
                        self.on_ended(self, action.change)
                case act.CallAnswered():
                    self.answers.pop(action.request_id)(action.result)
                case act.Attached():
                    self.on_attached(self)
                case act.RunEnded():
                    self.on_closed(self, action.close)
                case act.PlacedOnStandby():
                    self.on_standby(self)
                case act.WaitingTold():
                    self.on_waiting(self, action.waiting)
                case act.DrainTold():
                    if action.drain.is_asked and self.promises is not None:
                        self._act(self.machine.promise(self.promises))
                case act.StepDecided():
                    self.on_step_decided(self)
                case act.WasRefused():
                    self.on_lost(self, action.refusal.message)
                case act.Drop() | act.Redirected():
                    self.abort()

    def _count(self, message: wire.Message, payload: bytes) -> None:
        self.step_messages += isinstance(message, _OF_STEPS)
        if isinstance(message, wire.Heartbeat | wire.Beat):
            self.beats += 1
            self.beats_bytes += len(payload)
            if self.round_trips_s is not None:
                self._time_beat(self.round_trips_s, isinstance(message, wire.Beat))

    def _time_beat(self, round_trips_s: list[float], is_answer: bool) -> None:
        now_s = time.monotonic()
        if not is_answer:
            self._beat_said_s = now_s if self._beat_said_s is None else self._beat_said_s
        elif self._beat_said_s is not None:
            round_trips_s.append(now_s - self._beat_said_s)
            self._beat_said_s = None

    def beat_waits_s(self) -> float | None:
        """How long ago the oldest unanswered heartbeat was sent; None if there is none."""
        return None if self._beat_said_s is None else time.monotonic() - self._beat_said_s

    def _send(self, payload: bytes) -> None:
        self.sent += 1
        self.sent_bytes += len(payload)
        self._write(0x82, payload)

    def _write(self, first: int, payload: bytes) -> None:
        if self.transport is None:
            return
        length = len(payload)
        if length < 126:
            header = bytes((first, 0x80 | length, 0, 0, 0, 0))
        elif length < 65_536:
            header = struct.pack("!BBHI", first, 0xFE, length, 0)
        else:
            header = struct.pack("!BBQI", first, 0xFF, length, 0)
        self.transport.write(header + payload)


async def resolve(host: str, port: int) -> SocketAddress:
    """Family and socket address of the first address of this name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return found[0][0], found[0][4]


async def connect(node: VirtualNode, address: SocketAddress) -> None:
    """Open the node's connection, by TLS if its token names an authority.

    Raises FleetError if it is refused.
    """
    _, where = address

    async def dialed(secured: dict[str, Any]) -> None:
        node.sock = await _connected(address)
        await asyncio.get_running_loop().create_connection(lambda: node, sock=node.sock, **secured)

    try:
        parts = parse(node.token)
        if parts is None:
            await dialed({})
        else:
            await first_look.dial(
                parts, lambda: _reached(address), lambda client: dialed(client.options)
            )
    except OSError as error:
        raise FleetError(f"{where[0]}:{where[1]}: {error.strerror or error}") from error


async def _reached(address: SocketAddress) -> dict[str, Any]:
    return {"sock": await _connected(address)}


async def _connected(address: SocketAddress) -> socket.socket:
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        await asyncio.get_running_loop().sock_connect(sock, where)
    except OSError:
        sock.close()
        raise
    return sock
