"""Real etcd, nodes with a coordinator, and servers of the store over TCP, for rendezvous tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rallypoint.client.blocking import portal
from rallypoint.rendezvous._store_server import StoreServer
from rallypoint.rendezvous.etcd_blocking import EtcdConnection
from tests.ledger.conftest import etcd_program, one_etcd, prefix
from tests.ledger.etcd_processes import EtcdCluster, EtcdProcess, Program, etcd
from tests.rendezvous.nodes import Nodes, nodes_of, without_torch
from tests.rendezvous.store_servers import Peer, in_portal

__all__ = ["etcd_client", "etcd_program", "failing_etcd", "one_etcd", "prefix"]


LEFT_BEHIND_S = 30.0


@pytest.fixture(autouse=True, scope="module")
def calls_left_behind_have_ended() -> Iterator[None]:
    """What a deadline gave up (threads.py) ends before the next file's tests begin.

    torch's C++ prints when it does, and that would be in the output of a test that reads its own.
    """
    yield
    for thread in threading.enumerate():
        if thread.name == "rallypoint-call":
            thread.join(LEFT_BEHIND_S)
            assert not thread.is_alive()


@pytest.fixture
def etcd_client(one_etcd: EtcdCluster) -> Iterator[EtcdConnection]:
    client = EtcdConnection(endpoints=one_etcd.endpoints, read_timeout=10)
    yield client
    client.close()


@pytest.fixture
def failing_etcd(etcd_program: Program) -> Iterator[EtcdProcess]:
    """One that a test may kill or freeze."""
    with etcd(etcd_program) as cluster:
        yield cluster.members[0]
        cluster.members[0].thaw()


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    without_torch(monkeypatch)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of one for all tests that let it live."""
    with nodes_of(tmp_path_factory.mktemp("coordinator")) as nodes:
        yield nodes.endpoint


@pytest.fixture
def nodes(tmp_path: Path, coordinator: str) -> Iterator[Nodes]:
    with nodes_of(tmp_path, endpoint=coordinator) as nodes:
        yield nodes


@pytest.fixture
def nodes_alone(tmp_path: Path) -> Iterator[Nodes]:
    """Their coordinator is their own: the test may stop it."""
    with nodes_of(tmp_path) as nodes:
        yield nodes


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
        in_portal(server.close)


@pytest.fixture
def server(servers: Callable[..., StoreServer]) -> StoreServer:
    return servers()


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
