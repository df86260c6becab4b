"""The sockets beside the coordinator's: an agent's, a worker's, the static store's, a node's own.

Each protocol is the shipped one, over a connection in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import cache
from random import Random
from typing import Any, Final

from rallypoint import errors
from rallypoint.client import actions as act
from rallypoint.client import machine as m
from rallypoint.client.agent_client import AgentClient
from rallypoint.client.node import Round
from rallypoint.client.sockets import ResettingSocket
from rallypoint.client.transport import Connection
from rallypoint.core import store as st
from rallypoint.core.store.store import RoundStore
from rallypoint.core.values import (
    Address,
    Failure,
    FailureKind,
    NodeInfo,
    Outcome,
    RoundHead,
    RunSettings,
    Seat,
)
from rallypoint.launch.channel import Channel, Requests, WorkerLink
from rallypoint.rendezvous import _store_server
from rallypoint.settings import WorkerChannel
from rallypoint.wire import local
from rallypoint.wire import messages as wire
from tests.fuzz.making import Make, Maker, bent, packed
from tests.fuzz.memory import MemoryTransport
from tests.fuzz.watching import Watch, must
from tests.fuzz.world import turns

INPUTS: Final = 1_000
HEAD: Final = RoundHead(7, 1, 2, 2, Address("h", 1), "0" * 16)
SECRET: Final = "5" * 32

_number = lambda rng: rng.choice((1, 2, 3, 7, 7, 7, 8, 0, 2**63 - 1))  # noqa: E731
_POOLS: Final[dict[str, Make]] = {
    "round": lambda rng: rng.choice((7, 7, 7, 7, 6, 8)),
    "number": lambda rng: rng.choice((7, 8, 9, 10, 6, 2**63 - 1)),
    "request_id": _number,
    "secret": lambda rng: SECRET if rng.random() < 0.9 else rng.choice(("", "é", "x" * 5_000)),
    "timeout_s": lambda rng: rng.choice((None, 0.0, 0.01, 5.0, -1.0, 1e308)),
    "heartbeat_s": lambda rng: rng.choice((1.0, 0.0, -1.0, 1e308, float("nan"), float("inf"))),
    "version": lambda rng: rng.choice((1, 1, 1, 1, 0, 2)),
    "ledger_id": lambda rng: rng.choice(("L", "L", "L", "L", "M", "")),
    "term": lambda rng: rng.choice((1, 1, 1, 2, 0, 2**63 - 1)),
    "value": lambda rng: rng.choice((b"", b"1", b"12x")),
    "amount": lambda rng: 1,
    "key": lambda rng: rng.choice(("k", "l", "", "\0")),
}


@cache
def _maker(type: Any, wrong: float) -> Make:
    return Maker(type, _POOLS, wrong).make


def _local(body: bytes, rng: Random) -> bytes:
    """A body in its frame, whose length is sometimes another."""
    size = len(body)
    if rng.random() < 0.01:
        size = rng.choice((0, 1, size + 1, 2**31, 2**32 - 1, 5 << 20))
    return size.to_bytes(4) + body


def _body(type: Any, rng: Random) -> bytes:
    data = packed(_maker(type, 0.002)(rng))
    return bent(data, rng) if rng.random() < 0.02 else data


def _bring(transport: MemoryTransport, data: bytes, rng: Random) -> None:
    if len(data) > 1 and rng.random() < 0.05:
        cut = rng.randrange(1, len(data))
        transport.bring(data[:cut])
        data = data[cut:]
    transport.bring(data)


def _tasks() -> int:
    return len(asyncio.all_tasks())


# -- a worker's words to its agent -------------------------------------------------------------


class _Node:
    """What the agent's socket uses of the agent's node. Its store is the round's own."""

    ledger_id = ""
    drain = None
    step = None

    def __init__(self) -> None:
        self.info = NodeInfo("n", 1, "h")
        self.round: Round | None = Round(HEAD, Seat(0, 0, 1))
        self.change = None
        self.closed = None
        self.is_connected = True
        self.looking = ""
        self._store = RoundStore([("n", 0, 1)], st.DEFAULT_LIMITS)
        self._requests = 0

    def takes_part(self) -> None:
        """Its workers ask at each step whether to stop."""

    def promise(self, step: int) -> None:
        """No worker of it passes a later step."""

    async def call(self, op: st.StoreOp, timeout_s: float | None) -> st.StoreResult:
        await asyncio.sleep(0)
        self._requests += 1
        for answer in self._store.apply("n", self._requests, op, 0.0, 0.0):
            return answer.result
        return st.StoreFailure(st.TIMEOUT, "not there")

    async def members(self) -> tuple[Any, ...]:
        await asyncio.sleep(0.1)
        return ()

    async def waiting(self) -> None:
        raise errors.CoordinatorLostError("nobody is there")


async def _agent(rng: Random, watch: Watch) -> int:
    channel = Channel(_Node(), Requests(_nothing, _nothing, _nothing))  # type: ignore[arg-type]
    assert channel.node.round is not None
    channel.begin_round(channel.node.round)
    channel.secret = SECRET
    before, inputs = _tasks(), 0
    hello = _maker(local.Hello, 0.01)
    while inputs < INPUTS:
        link = WorkerLink(channel)
        transport = MemoryTransport(link, ("", 0))
        _bring(transport, _local(packed(hello(rng)), rng), rng)
        for _ in range(rng.choice((1, 5, 40))):
            _bring(transport, _local(_body(local.FromWorker, rng), rng), rng)
            inputs += 1
            if rng.random() < 0.1:
                await turns(1)
        unframer = local.Unframer()
        for body in unframer.feed(transport.take()):
            local.decode_from_agent(body)
        transport.end()
        await turns(2)
        must(link not in channel.links, "a worker's link stays after its end")
    await asyncio.sleep(1)
    must(_tasks() <= before, f"{_tasks() - before} tasks are left of workers' calls")
    return inputs


def _nothing(*arguments: object) -> None:
    """What a worker asked for is the agent's affair."""


# -- an agent's words to a worker --------------------------------------------------------------


async def _worker(rng: Random, watch: Watch) -> int:
    inputs = 0
    known = WorkerChannel(
        agent="@x",
        secret=SECRET,
        run_id="run",
        node="n",
        round=7,
        term=1,
        rank=0,
        local_rank=0,
        world_size=2,
        local_world_size=1,
        node_rank=0,
        nodes=2,
    )
    before = _tasks()
    while inputs < INPUTS:
        source = AgentClient(known)
        transport = MemoryTransport(source, ("", 0))
        admitted = local.Admitted("n", HEAD, Seat(0, 0, 1))
        calls: list[asyncio.Task[None]] = []
        if rng.random() < 0.9:  # there are no requests before that: see AgentClient.open
            transport.bring(local.encode(admitted))
            calls = [asyncio.create_task(_asked(source, rng)) for _ in range(5)]
        await turns(2)
        for _ in range(rng.choice((1, 5, 40))):
            _bring(transport, _local(_body(local.FromAgent, rng), rng), rng)
            inputs += 1
        await turns(2)
        transport.end()
        await asyncio.gather(*calls)
        if source._admitted.done() and not source._admitted.cancelled():
            source._admitted.exception()
    must(_tasks() <= before, f"{_tasks() - before} tasks are left of a worker")
    return inputs


async def _asked(source: AgentClient, rng: Random) -> None:
    with contextlib.suppress(errors.RallypointError):
        match rng.randrange(4):
            case 0:
                await source.call(st.Get("k"), 1.0)
            case 1:
                await source.members()
            case 2:
                await source.waiting()
            case _:
                await source.close(Outcome.STOPPED, "x")


# -- a client's words to the static store ------------------------------------------------------


async def _store(rng: Random, watch: Watch) -> int:
    server = _store_server.StoreServer(clients_max=8)
    server._loop = asyncio.get_running_loop()
    inputs = 0
    while inputs < INPUTS:
        link = _store_server._Link(server)
        transport = MemoryTransport(link, ("192.0.2.7", 1))
        greeting = _maker(_store_server.Greeting, 0.01)
        _bring(transport, _local(packed(greeting(rng)), rng), rng)
        for number in range(rng.choice((1, 5, 40))):
            message = _maker(_store_server.FromClient, 0.002)(rng)
            if isinstance(message, list) and len(message) > 2 and rng.random() < 0.9:
                message[1] = number
            _bring(transport, _local(packed(message), rng), rng)
            inputs += 1
        unframer = local.Unframer()
        for body in unframer.feed(transport.take()):
            _store_server.decode_from_server(body)
        if rng.random() < 0.05:
            await asyncio.sleep(11)
        transport.end()
        await turns(2)
    await asyncio.sleep(30)
    must(not server._links, f"{len(server._links)} links are left")
    must(len(server._free) == 8, f"{len(server._free)} seats are free, of 8")
    server.close()
    return inputs


# -- a coordinator's words to a node -----------------------------------------------------------

_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: "
)
_ANSWERS: Final = (
    b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 13\r\n\r\n" + b'{"error":"x"}',
    b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 5000\r\n\r\n" + b"[" * 5_000,
    b"HTTP/1.1 404 No\r\nContent-Length: 3\r\n\r\n\xff\xff\xff",
    b"HTTP/1.1 502 Bad\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x15\x03\x01\x00\x02\x02F",
)


def _accept_key(request: bytes) -> bytes:
    from websockets.utils import accept_key

    key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
    return accept_key(key.decode()).encode()


async def _coordinator(rng: Random, watch: Watch) -> int:
    inputs = 0
    while inputs < INPUTS:
        inputs += await _one_coordinator(rng)
    return inputs


async def _one_coordinator(rng: Random) -> int:
    loop = asyncio.get_running_loop()
    machine = m.NodeMachine("run", NodeInfo("n", 1, "h"), RunSettings(), silence_s=6.0)
    sock = ResettingSocket()
    connection = Connection(Address("h", 1), "token", sock)
    inputs = 0

    def received(data: bytes) -> None:
        try:  # as Node takes it
            message = wire.decode_from_coordinator(data)
        except wire.MalformedError as error:
            connection.abort(str(error))
            return
        _do(machine.received(message, loop.time()))

    def _do(actions: list[act.Action]) -> None:
        for action in actions:
            if isinstance(action, act.Send):
                connection.send(wire.encode(action.message))

    transport = MemoryTransport(connection, ("h", 1))
    connection.on_message = received
    request = transport.take()
    if rng.random() < 0.1:
        transport.bring(rng.choice(_ANSWERS))
        transport.end()
        await turns(2)
        inputs += 1
    else:
        transport.bring(_SWITCHING + _accept_key(request) + b"\r\n\r\n")
        _do(machine.connected(loop.time(), Address("h", 2)))
        _do(machine.ready(Address("h", 3), 1))
    for _ in range(rng.choice((1, 5, 40))):
        _bring(transport, _frame(_body(wire.FromCoordinator, rng), rng), rng)
        inputs += 1
        match rng.randrange(12):
            case 0:
                _do(machine.ready(Address("h", 3), 1))
            case 1:
                _do(machine.call(st.Get("k"), 1.0, loop.time())[1])
            case 2:
                _do(machine.failed(Failure(FailureKind.EXCEPTION, "boom")))
            case 3:
                _do(machine.tick(loop.time()))
                await asyncio.sleep(rng.choice((0.0, 0.1, 3.0)))
            case 4:
                _do(machine.ask_members()[1])
    transport.end(ConnectionResetError(104, "reset"))
    await turns(3)
    with contextlib.suppress(OSError, errors.CoordinatorError):
        await connection.opened()
    sock.close()
    return inputs


def _frame(payload: bytes, rng: Random) -> bytes:
    """A server's frame: without a mask, but for some."""
    first = 0x82 if rng.random() < 0.97 else rng.randrange(256)
    size = len(payload)
    if size < 126:
        head = bytes((first, size))
    else:
        head = bytes((first, 126)) + min(size, 65_535).to_bytes(2)
    if rng.random() < 0.01:
        head = bytes((first, rng.choice((255, 127, 126)))) + rng.randbytes(8)
    return head + payload


_KINDS: Final = (_agent, _worker, _store, _coordinator)


async def _episode(rng: Random, watch: Watch) -> int:
    asyncio.get_running_loop().set_exception_handler(watch.on_loop)
    inputs = 0
    for kind in _KINDS:
        inputs += await kind(rng, watch)
        await turns(5)
        watch.check()
    return inputs


def episode(rng: Random, watch: Watch) -> int:
    """Some thousand messages, to each of the four. How many it were."""
    from tests.loops import run_virtual

    return run_virtual(_episode(rng, watch))
