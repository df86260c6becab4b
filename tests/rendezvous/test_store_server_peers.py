"""The store over TCP: peers that misbehave, and what they can make the server hold."""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
from collections.abc import Callable, Sequence

import msgspec
import pytest

from rallypoint import errors
from rallypoint.core import store as ops
from rallypoint.rendezvous import _store_server as wire
from rallypoint.rendezvous._store_server import StoreServer
from rallypoint.wire import local
from rallypoint.wire.messages import MESSAGE_BYTES_MAX, MalformedError
from tests.rendezvous.store_servers import Peer, connect, frame, until

pytestmark = pytest.mark.sockets


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x00" + struct.pack("=I", 0x3C85F7CE),  # how a client of torch's TCPStore begins
        b"\xff" * 64,
        frame(b""),
        frame(b"\x80\x04\x95pickle"),
        frame(msgspec.msgpack.encode(["call", 1, ["num"], None])),
        frame(msgspec.msgpack.encode(["store", 99])),
        frame(msgspec.msgpack.encode(["store", "1"])),
        frame(b"\x91" * 200),
        struct.pack("!I", wire.GREETING_BYTES_MAX + 1),
    ],
)
def test_a_peer_without_a_greeting_is_refused(
    server: StoreServer,
    data: bytes,
    peer_of: Callable[..., Peer],
) -> None:
    peer = peer_of(server, greets=False)
    peer.send_bytes(data)
    assert peer.refusal()
    connect(server).set("key", "value")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 64,
        struct.pack("!I", MESSAGE_BYTES_MAX + 1),
        frame(b"\xc1"),
        frame(msgspec.msgpack.encode(["call", 1, ["unknown", "key"], None])),
        frame(msgspec.msgpack.encode(["call", 1, ["set", "key", 5], None])),
        frame(msgspec.msgpack.encode(["call", "1", ["num"], None])),
        frame(msgspec.msgpack.encode(["store", wire.VERSION])),
        frame(msgspec.msgpack.encode(["answer", 1, ["ok", None]])),
        local.encode(local.Call(1, ops.NumKeys(), None)) * 2,
        local.encode(local.Call(-1, ops.NumKeys(), None)),
    ],
)
def test_garbage_ends_the_connection_and_nothing_else(
    server: StoreServer,
    data: bytes,
    peer_of: Callable[..., Peer],
) -> None:
    store = connect(server)
    peer = peer_of(server)
    peer.send(local.Call(0, ops.Set("key", b"value"), None))
    assert peer.next() == local.Answer(0, ops.StoreValue(None))
    peer.send_bytes(data)
    told = peer.next()
    if isinstance(told, local.Answer):  # of the first of two calls with one number
        told = peer.next()
    assert isinstance(told, local.Denied)
    assert peer.next() is None
    assert store.get("key") == b"value"
    until(lambda: len(server._links) == 1)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_do_no_harm(
    server: StoreServer,
    seed: int,
    peer_of: Callable[..., Peer],
) -> None:
    import random

    chance = random.Random(seed)
    peer = peer_of(server)
    for _ in range(20):
        body = chance.randbytes(chance.randrange(1, 40))
        try:
            wire.decode_from_client(body)
        except MalformedError:
            peer.send_bytes(frame(body))
            break
    assert isinstance(peer.next(), local.Denied)
    connect(server).set("key", "value")


def test_a_frame_may_come_in_pieces(
    server: StoreServer,
    peer_of: Callable[..., Peer],
) -> None:
    peer = peer_of(server)
    for byte in local.encode(local.Call(1, ops.Add("count", 5), 1.0)):
        peer.send_bytes(bytes([byte]))
    assert peer.next() == local.Answer(1, ops.StoreValue(5))


def test_a_silent_peer_is_closed(
    servers: Callable[..., StoreServer],
    monkeypatch: pytest.MonkeyPatch,
    peer_of: Callable[..., Peer],
) -> None:
    monkeypatch.setattr(wire, "GREETING_TIMEOUT_S", 0.05)
    assert peer_of(servers(), greets=False).next() is None


def test_a_call_can_be_cancelled(
    server: StoreServer,
    peer_of: Callable[..., Peer],
) -> None:
    peer = peer_of(server)
    peer.send(local.Call(1, ops.Get("absent"), None))
    until(lambda: len(server._engine.freeze().waiting) == 1)
    peer.send(local.Cancel(1))
    peer.send(local.Cancel(7))  # one that never was
    peer.send(local.Call(2, ops.NumKeys(), None))
    assert peer.next() == local.Answer(2, ops.StoreValue(0))
    assert server._engine.freeze().waiting == ()


def test_a_barrier_is_not_among_its_calls(
    server: StoreServer,
    peer_of: Callable[..., Peer],
) -> None:
    peer = peer_of(server)
    peer.send(local.Call(1, ops.Barrier("name", 4000), 1.0))
    told = peer.next()
    assert isinstance(told, local.Answer)
    assert isinstance(told.result, ops.StoreFailure)
    assert told.result.code == ops.BAD_REQUEST


def test_a_connection_beyond_the_limit_is_refused(
    servers: Callable[..., StoreServer],
) -> None:
    server = servers(clients_max=2)
    first, second = connect(server), connect(server)
    with pytest.raises(errors.UnreachableError, match="already has its maximum of connections"):
        connect(server, 2)
    first.set("key", "value")
    assert second.get("key") == b"value"
    del first
    gc.collect()
    assert connect(server, 20).get("key") == b"value"


def unread(server: StoreServer, peer: Peer, calls: int) -> None:
    """The peer asks for large answers, and reads none of them."""
    store = connect(server)
    store.set("large", bytes(4 * 1024**2))
    for number in range(1, calls + 1):
        peer.send(local.Call(number, ops.MultiGet(("large",) * 16), None))
    until(lambda: max(link._last_id for link in server._connected) == calls)
    assert store.check(["large"]) is True


def test_unread_answers_take_no_more_than_the_values(
    server: StoreServer, peer_of: Callable[..., Peer]
) -> None:
    peer = peer_of(server)
    before = server.budget.used
    unread(server, peer, 10)
    assert server.budget.used - before < 9 * 1024**2
    wanted = ops.StoreValue((bytes(4 * 1024**2),) * 16)
    assert peer.next() == local.Answer(1, wanted)
    assert peer.next() == local.Answer(2, wanted)


def test_a_peer_that_does_not_read_is_closed(
    servers: Callable[..., StoreServer],
    monkeypatch: pytest.MonkeyPatch,
    peer_of: Callable[..., Peer],
) -> None:
    monkeypatch.setattr(wire, "UNREAD_S", 0.2)
    server = servers()
    peer = peer_of(server)
    unread(server, peer, 5)
    until(lambda: len(server._links) <= 1)
    gc.collect()
    until(lambda: not server._connected)
    until(lambda: server.budget.used < 5 * 1024**2)


def test_unread_small_answers_are_bounded(
    server: StoreServer, peer_of: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "UNREAD_BYTES_MAX", 64 * 1024)
    peer = peer_of(server)
    store = connect(server)
    store.set("key", bytes(10_000))
    calls = [local.encode(local.Call(n, ops.Get("key"), None)) for n in range(1, 3_000)]
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        peer.send_bytes(b"".join(calls))
    until(lambda: len(server._links) == 1)
    assert store.check(["key"]) is True


def test_a_full_store_refuses_and_continues(
    servers: Callable[..., StoreServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALLYPOINT_MEMORY", "16MiB")
    store = connect(servers())
    for number in range(3):
        store.set(f"key/{number}", bytes(1024**2))
    more = [f"more/{number}" for number in range(6)]
    with pytest.raises(errors.StoreError, match=r"16 MiB.*RALLYPOINT_MEMORY") as caught:
        store.multi_set(more, [bytes(1024**2)] * 6)
    assert caught.value.code == ops.LIMIT
    assert store.get("key/0") == bytes(1024**2)
    assert store.delete_key("key/0")
    store.set("new", bytes(1024**2))


def test_waiting_calls_do_not_slow_other_calls(
    server: StoreServer, peer_of: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer was acknowledged with the list of all calls that were open."""
    asked: list[int] = []
    acknowledge = server._engine.acknowledge

    def counted(node: str, up_to: int, still_open: Sequence[int] = ()) -> None:
        asked.append(len(still_open))
        acknowledge(node, up_to, still_open)

    monkeypatch.setattr(server._engine, "acknowledge", counted)
    peer = peer_of(server)
    waits = [local.encode(local.Call(n, ops.Get("absent"), None)) for n in range(1, 1_001)]
    calls = [local.encode(local.Call(n, ops.NumKeys(), None)) for n in range(1_001, 3_001)]
    peer.send_bytes(b"".join(waits + calls))
    for number in range(1_001, 3_001):
        assert peer.next() == local.Answer(number, ops.StoreValue(0))
    assert sum(asked) < 10 * len(calls)


def test_a_peer_without_a_greeting_has_no_rank(
    servers: Callable[..., StoreServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "STRANGERS_MAX", 8)
    server = servers(clients_max=4)
    mute = [socket.create_connection(("localhost", server.port)) for _ in range(7)]
    until(lambda: len(server._connected) == 7)
    store = connect(server)
    store.set("key", "value")
    more = [socket.create_connection(("localhost", server.port)) for _ in range(20)]
    assert store.get("key") == b"value"
    assert len(server._connected) <= 9
    for each in mute + more:
        each.close()
    assert connect(server, 30).get("key") == b"value"
