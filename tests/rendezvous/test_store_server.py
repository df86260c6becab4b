"""The store over TCP that replaces torch's: calls, deadlines, and a server that stops."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

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
from rallypoint.wire.messages import MESSAGE_BYTES_MAX
from tests.rendezvous.backends import freeze
from tests.rendezvous.store_servers import SRC, connect, in_portal, until

pytestmark = pytest.mark.sockets


# -- calls ---------------------------------------------------------------------------------------


def test_clients_share_the_keys(server: StoreServer) -> None:
    one, other = connect(server), connect(server)
    one.set("key", "value")
    assert other.get("key") == b"value"
    assert [store.add("count", 2) for store in (one, other, one)] == [2, 4, 6]
    assert one.num_keys() == 2


def test_a_waiting_call_blocks_no_other_call_of_its_store(server: StoreServer) -> None:
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


def test_a_timeout_names_the_missing_keys(
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


def test_a_failed_call_is_reported_and_the_store_continues(server: StoreServer) -> None:
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


def test_a_client_that_disconnects_leaves_no_wait(server: StoreServer) -> None:
    with socket.create_connection(("localhost", server.port)) as sock:
        sock.sendall(local.encode(wire.Greeting(wire.VERSION)))
        sock.sendall(local.encode(local.Call(1, ops.Get("absent"), None)))
        until(lambda: len(server._engine.freeze().waiting) == 1)
    until(lambda: server._engine.freeze().waiting == ())
    assert connect(server).num_keys() == 0


def test_an_unreferenced_store_closes_its_connection(server: StoreServer) -> None:
    store = connect(server)
    assert len(server._links) == 1
    del store
    gc.collect()
    until(lambda: not server._links)


# -- where a server is shared --------------------------------------------------------------------


def test_a_process_serves_a_port_once_while_it_is_referenced() -> None:
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


def test_a_client_may_start_before_the_server(servers: Callable[..., StoreServer]) -> None:
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
    in_portal(link.cut)
    until(lambda: not server._links)
    until(lambda: store._store._calls._link.is_lost)  # type: ignore[attr-defined]
    assert store.get("key") == b"value"


def test_a_call_under_way_when_the_connection_is_lost_fails(server: StoreServer) -> None:
    store = connect(server)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.get, "absent")
        until(lambda: len(server._engine.freeze().waiting) == 1)
        in_portal(server.close)
        with pytest.raises(errors.StoreError, match=f"localhost:{server.port} is lost") as raised:
            waiting.result(20)
    assert not isinstance(raised.value, TimeoutError)
    with pytest.raises(errors.StoreError, match="is lost"):
        store.set("key", "value")


def test_another_store_at_the_address_is_recognized(
    servers: Callable[..., StoreServer],
) -> None:
    server = servers()
    store = connect(server)
    store.set("key", "value")
    in_portal(server.close)
    servers(server.port)
    until(lambda: store._store._calls._link.is_lost)  # type: ignore[attr-defined]
    with pytest.raises(errors.StoreError, match="another store is there now"):
        store.get("key")


def test_a_missing_server_is_an_error_with_the_attempts() -> None:
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
        with pytest.raises(errors.NotACoordinatorError, match="is not a Rallypoint store"):
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
        with pytest.raises(errors.NotACoordinatorError, match="is not a Rallypoint store"):
            open_store(portal(), "127.0.0.1", other.getsockname()[1], 30)
        thread.join(20)
        for sock in accepted:
            sock.close()


def test_a_server_is_recognized_by_its_greeting(server: StoreServer) -> None:
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
def test_on_a_stopped_server_no_call_passes_its_deadline(
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
