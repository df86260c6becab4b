"""The store over TCP that stands in for torch's: calls, deadlines, and peers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from rallypoint import errors
from rallypoint.client.blocking import portal
from rallypoint.core import store as ops
from rallypoint.rendezvous import _store_client
from rallypoint.rendezvous import _store_server as wire
from rallypoint.rendezvous._store_client import TcpStore, open_store
from rallypoint.rendezvous._store_probe import StoreKind, kind_at
from rallypoint.rendezvous._store_server import StoreServer, serve_at
from rallypoint.wire import local
from rallypoint.wire.messages import MESSAGE_BYTES_MAX, MalformedError
from tests.rendezvous.backends import freeze

pytestmark = pytest.mark.sockets

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture
def servers() -> Iterator[Callable[..., StoreServer]]:
    """Starts servers, in the process's portal, and closes them."""
    started: list[StoreServer] = []

    def start(port: int = 0, **options: int) -> StoreServer:
        server = StoreServer(**options)
        portal().run(server.start(port))
        started.append(server)
        return server

    yield start
    for server in started:
        portal().run(_do(server.close))


async def _do(work: Callable[[], None]) -> None:
    work()


@pytest.fixture
def server(servers: Callable[..., StoreServer]) -> StoreServer:
    return servers()


def connect(server: StoreServer, timeout_s: float = 10.0) -> TcpStore:
    return open_store(portal(), "localhost", server.port, timeout_s)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what is on its way through the portal's loop."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        portal().run(asyncio.sleep(0.001))


# -- calls ---------------------------------------------------------------------------------------


def test_clients_share_the_keys(server: StoreServer) -> None:
    one, other = connect(server), connect(server)
    one.set("key", "value")
    assert other.get("key") == b"value"
    assert [store.add("count", 2) for store in (one, other, one)] == [2, 4, 6]
    assert one.num_keys() == 2


def test_a_call_that_waits_holds_up_no_other_of_the_same_store(server: StoreServer) -> None:
    store = connect(server)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.get, "key")
        until(lambda: server._engine.freeze().waiting != ())
        store.set("key", "value")
        assert waiting.result(20) == b"value"


def test_many_clients_wait_for_one_key_and_count_once_each(server: StoreServer) -> None:
    stores = [connect(server, 30) for _ in range(64)]

    def come(store: TcpStore) -> bytes:
        if store.add("came", 1) == len(stores):
            store.set("go", b"now")
        return store.get("go")

    with ThreadPoolExecutor(len(stores)) as pool:
        assert list(pool.map(come, stores)) == [b"now"] * len(stores)
    assert stores[0].get("came") == b"64"


def test_a_deadline_names_what_is_missing(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_store_client, "ANSWER_MARGIN_S", 20)  # the server says it, however late
    store = connect(server)
    store.set("there", "")
    began_s = time.monotonic()
    with pytest.raises(errors.StoreTimeoutError, match=r"after 0\.1 s") as raised:
        store.wait(["there", "absent"], timedelta(seconds=0.1))
    assert raised.value.missing == ("absent",)
    assert time.monotonic() - began_s < 5
    assert isinstance(raised.value, TimeoutError)


def test_what_fails_is_told_and_the_store_goes_on(server: StoreServer) -> None:
    store = connect(server)
    store.set("text", "abc")
    with pytest.raises(errors.StoreError, match="not a 64-bit decimal integer"):
        store.add("text", 1)
    with pytest.raises(errors.StoreError, match="value_bytes_max"):
        store.set("large", bytes(5 * 1024**2))
    with pytest.raises(errors.StoreError, match="a call may have"):
        store.set("larger", bytes(MESSAGE_BYTES_MAX))
    with pytest.raises(errors.UsageError, match="bytes or a str"):
        store.set("number", 5)  # type: ignore[arg-type]
    assert store.get("text") == b"abc"


def test_a_large_value_passes_whole(server: StoreServer) -> None:
    value = os.urandom(4 * 1024**2)
    connect(server).set("key", value)
    assert connect(server).get("key") == value


def test_answers_are_not_kept_by_the_server(server: StoreServer) -> None:
    store = connect(server)
    for _ in range(100):
        store.add("count", 1)
    assert all(session.answered == () for session in server._engine.freeze().sessions)


def test_a_client_that_goes_waits_no_more(server: StoreServer) -> None:
    with socket.create_connection(("localhost", server.port)) as sock:
        sock.sendall(local.encode(wire.Greeting(wire.VERSION)))
        sock.sendall(local.encode(local.Call(1, ops.Get("absent"), None)))
        until(lambda: len(server._engine.freeze().waiting) == 1)
    until(lambda: server._engine.freeze().waiting == ())
    assert connect(server).num_keys() == 0


def test_a_store_that_nobody_has_closes_its_connection(server: StoreServer) -> None:
    store = connect(server)
    assert len(server._links) == 1
    del store
    gc.collect()
    until(lambda: not server._links)


# -- where a server is shared --------------------------------------------------------------------


def test_a_process_serves_a_port_once_for_as_long_as_somebody_holds_it() -> None:
    first = serve_at(portal(), 0)
    port = first.port
    assert serve_at(portal(), port) is first
    open_store(portal(), "127.0.0.1", port, 10).set("key", "value")
    del first
    gc.collect()
    again = serve_at(portal(), port)
    assert open_store(portal(), "127.0.0.1", port, 10).num_keys() == 0
    assert again.port == port


# -- the connection ------------------------------------------------------------------------------


def test_a_client_comes_before_the_server(servers: Callable[..., StoreServer]) -> None:
    with socket.create_server(("", 0), family=socket.AF_INET) as reserved:
        port = reserved.getsockname()[1]
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(open_store, portal(), "localhost", port, 30)
        server = servers(port)
        early.result(30).set("key", "value")
    assert connect(server).get("key") == b"value"


def test_a_lost_connection_is_made_again_by_the_next_call(server: StoreServer) -> None:
    store = connect(server)
    store.set("key", "value")
    (link,) = server._links.values()
    portal().run(_do(link.cut))
    until(lambda: not server._links)
    until(lambda: store._store._calls._link.is_lost)  # type: ignore[attr-defined]
    assert store.get("key") == b"value"


def test_a_call_under_way_when_the_connection_is_lost_fails(server: StoreServer) -> None:
    store = connect(server)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.get, "absent")
        until(lambda: len(server._engine.freeze().waiting) == 1)
        portal().run(_do(server.close))
        with pytest.raises(errors.StoreError, match=f"localhost:{server.port} is lost") as raised:
            waiting.result(20)
    assert not isinstance(raised.value, TimeoutError)
    with pytest.raises(errors.StoreError, match="is lost"):
        store.set("key", "value")


def test_another_store_in_its_place_is_not_taken_for_it(
    servers: Callable[..., StoreServer],
) -> None:
    server = servers()
    store = connect(server)
    store.set("key", "value")
    portal().run(_do(server.close))
    servers(server.port)
    until(lambda: store._store._calls._link.is_lost)  # type: ignore[attr-defined]
    with pytest.raises(errors.StoreError, match="another store is there now"):
        store.get("key")


def test_nobody_there_is_told_with_what_was_tried() -> None:
    with socket.create_server(("", 0), family=socket.AF_INET) as reserved:
        port = reserved.getsockname()[1]
    with pytest.raises(errors.UnreachableError, match="within 2 s") as raised:
        open_store(portal(), "127.0.0.1", port, 2)
    ((where, problem),) = raised.value.attempts
    assert where == f"127.0.0.1:{port}"
    assert "refused" in problem.lower() or "connect" in problem.lower()


def test_a_program_that_closes_connections_is_no_store() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def close_all() -> None:
            for _ in range(3):
                other.accept()[0].close()

        thread = threading.Thread(target=close_all)
        thread.start()
        with pytest.raises(errors.NotACoordinatorError, match="is not a store of Rallypoint"):
            open_store(portal(), "127.0.0.1", other.getsockname()[1], 30)
        thread.join(20)


def test_a_program_that_speaks_otherwise_is_no_store() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        accepted: list[socket.socket] = []

        def answer_all() -> None:
            for _ in range(3):
                accepted.append(other.accept()[0])
                accepted[-1].sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer_all)
        thread.start()
        with pytest.raises(errors.NotACoordinatorError, match="is not a store of Rallypoint"):
            open_store(portal(), "127.0.0.1", other.getsockname()[1], 30)
        thread.join(20)
        for sock in accepted:
            sock.close()


def test_a_server_is_known_by_its_greeting(server: StoreServer) -> None:
    assert kind_at("localhost", server.port, 5) is StoreKind.OURS
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert kind_at("127.0.0.1", port, 0.05) is StoreKind.UNKNOWN
    with pytest.raises(ConnectionRefusedError):
        kind_at("127.0.0.1", port, 5)


# -- a server that is stopped --------------------------------------------------------------------

SERVE = f"""
import sys
sys.path.insert(0, {str(SRC)!r})
sys.modules["torch"] = None
from rallypoint.client.blocking import portal
from rallypoint.rendezvous._store_server import serve_at
server = serve_at(portal(), 0)
print(server.port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def frozen() -> Iterator[tuple[TcpStore, int]]:
    """A store whose server was stopped (SIGSTOP) after the client had connected, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        store = open_store(portal(), "localhost", port, 20)
        store.set("key", "value")
        freeze(process)
        yield store, port
        process.send_signal(signal.SIGCONT)
        store.set_timeout(20)
        # It goes on where it was; what was given up meanwhile does no harm.
        assert store.get("key") in (b"value", b"later")
        process.kill()


CALLS: list[tuple[str, Callable[[TcpStore], object]]] = [
    ("set", lambda store: store.set("key", "later")),
    ("get", lambda store: store.get("key")),
    ("add", lambda store: store.add("count", 1)),
    ("compare_set", lambda store: store.compare_set("other", "", "x")),
    ("append", lambda store: store.append("other", "x")),
    ("wait", lambda store: store.wait(["key"])),
    ("check", lambda store: store.check(["key"])),
    ("multi_get", lambda store: store.multi_get(["key"])),
    ("multi_set", lambda store: store.multi_set(["other"], ["x"])),
    ("delete_key", lambda store: store.delete_key("other")),
    ("num_keys", lambda store: store.num_keys()),
]


@pytest.mark.processes
def test_no_call_outlasts_its_deadline_on_a_server_that_is_stopped(
    frozen: tuple[TcpStore, int],
) -> None:
    store, port = frozen
    store.set_timeout(0.1)

    def call(work: Callable[[TcpStore], object]) -> float:
        began_s = time.monotonic()
        with pytest.raises(errors.StoreTimeoutError, match=f"localhost:{port} has not answered"):
            work(store)
        return time.monotonic() - began_s

    with ThreadPoolExecutor(len(CALLS)) as pool:
        took_s = list(pool.map(call, [work for _, work in CALLS]))
    assert max(took_s) < 5, dict(zip([name for name, _ in CALLS], took_s, strict=True))


@pytest.mark.processes
def test_connecting_to_a_server_that_is_stopped_keeps_its_deadline(
    frozen: tuple[TcpStore, int],
) -> None:
    _, port = frozen
    began_s = time.monotonic()
    with pytest.raises(errors.UnreachableError, match=f"localhost:{port} within 0.3 s"):
        open_store(portal(), "localhost", port, 0.3)
    assert time.monotonic() - began_s < 5


# -- peers that misbehave (R12) ------------------------------------------------------------------


class Peer:
    """A connection that says what it likes."""

    def __init__(self, server: StoreServer, *, greets: bool = True) -> None:
        self._sock = socket.create_connection(("localhost", server.port), 20)
        self._unframer = local.Unframer()
        self._bodies: list[bytes] = []
        assert isinstance(self.next(), wire.Greeting)
        if greets:
            self.send(wire.Greeting(wire.VERSION))

    def send(self, message: local.LocalMessage) -> None:
        self.send_bytes(local.encode(message))

    def send_bytes(self, data: bytes) -> None:
        self._sock.sendall(data)

    def next(self) -> wire.FromServer | None:
        """What the server says next; None if it has closed the connection."""
        while not self._bodies:
            try:
                data = self._sock.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._bodies += self._unframer.feed(data)
        return wire.decode_from_server(self._bodies.pop(0))

    def refusal(self) -> str:
        """Why the server ended the connection."""
        told = self.next()
        assert isinstance(told, local.Denied)
        assert self.next() is None
        return told.message

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def peer_of() -> Iterator[Callable[..., Peer]]:
    """Connects peers, and closes them at the end."""
    peers: list[Peer] = []

    def make(server: StoreServer, *, greets: bool = True) -> Peer:
        peers.append(Peer(server, greets=greets))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


def frame(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


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
def test_who_does_not_greet_is_refused(
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


def test_who_says_nothing_is_cut_off(
    servers: Callable[..., StoreServer],
    monkeypatch: pytest.MonkeyPatch,
    peer_of: Callable[..., Peer],
) -> None:
    monkeypatch.setattr(wire, "GREETING_TIMEOUT_S", 0.05)
    assert peer_of(servers(), greets=False).next() is None


def test_a_call_can_be_withdrawn(
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


def test_one_connection_more_than_it_takes_is_refused(
    servers: Callable[..., StoreServer],
) -> None:
    server = servers(clients_max=2)
    first, second = connect(server), connect(server)
    with pytest.raises(errors.UnreachableError, match="as many connections as it takes"):
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


def test_answers_that_are_not_read_take_no_more_than_the_values(
    server: StoreServer, peer_of: Callable[..., Peer]
) -> None:
    peer = peer_of(server)
    before = server.budget.used
    unread(server, peer, 10)
    assert server.budget.used - before < 9 * 1024**2
    wanted = ops.StoreValue((bytes(4 * 1024**2),) * 16)
    assert peer.next() == local.Answer(1, wanted)
    assert peer.next() == local.Answer(2, wanted)


def test_a_peer_that_reads_nothing_is_cut_off(
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


def test_small_answers_that_are_not_read_are_bounded(
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


def test_a_store_that_is_full_says_so_and_goes_on(
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


def test_calls_beside_many_that_wait_cost_no_more(
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


def test_who_has_not_greeted_has_no_seat(
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
