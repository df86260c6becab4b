"""The dynamic rendezvous over torch's own stores: in threads of one process, and in several."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rallypoint.rendezvous import (
    RendezvousClosedError,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from rallypoint.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend, create_backend
from rallypoint.rendezvous.dynamic_rendezvous import create_handler
from rallypoint.rendezvous.registry import get_rendezvous_handler
from tests.ports import free_port
from tests.rendezvous.backends import (
    WITHIN_S,
    Group,
    KeepsNothing,
    addresses,
    freeze,
    group_over,
    takes_at_most,
)
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.torch,
    pytest.mark.usefixtures("distributed"),
    pytest.mark.timeout(300),  # three processes at once import torch
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
]

SOON_S = 10.0


# -- in one process --------------------------------------------------------------------------------


@pytest.fixture
def distributed() -> Any:
    """Imported for the first test that needs it, not when tests are collected."""
    return importlib.import_module("torch.distributed")


@pytest.fixture(params=["tcp", "file", "hash"])
def store(request: pytest.FixtureRequest, distributed: Any, tmp_path: Path) -> Any:
    match request.param:
        case "tcp":
            return distributed.TCPStore("127.0.0.1", 0, is_master=True)
        case "file":
            return distributed.FileStore(str(tmp_path / "store"))
    return distributed.HashStore()


@pytest.fixture
def group(store: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    monkeypatch.setenv("RALLYPOINT_SCALE_UP_DELAY", "0")
    with group_over(C10dRendezvousBackend(store, "run"), store) as group:
        yield group


def test_rounds_newcomers_and_the_end(group: Group) -> None:
    a, b, c = (group.handler(2, 3) for _ in range(3))
    assert a.get_backend() == "c10d"
    assert a.use_agent_store
    first = group.meet(a, b)
    assert sorted(info.rank for info in first) == [0, 1]
    assert len(addresses(first)) == 1

    call = group.start(c.next_rendezvous)
    wait_until(lambda: a.num_nodes_waiting() > 0 and b.num_nodes_waiting() > 0, SOON_S)
    second = [*group.meet(a, b), call.result(WITHIN_S)]
    assert sorted(info.rank for info in second) == [0, 1, 2]
    assert len(addresses(second)) == 1
    assert addresses(first) != addresses(second)

    a.set_closed()
    wait_until(lambda: b.is_closed() and c.is_closed(), SOON_S)
    with pytest.raises(RendezvousClosedError):
        b.next_rendezvous()
    with pytest.raises(RendezvousClosedError):
        group.handler(2, 3).next_rendezvous()


def test_a_rounds_store_is_a_prefix_over_the_callers(
    group: Group, store: Any, distributed: Any
) -> None:
    a, b = group.handler(), group.handler()
    infos = group.meet(a, b)
    assert isinstance(infos[0].store, distributed.PrefixStore)
    infos[0].store.set("key", "value")
    assert infos[1].store.get("key") == b"value"
    assert a._node is not None
    assert a._node.round is not None
    digest = a._node.round.head.digest
    assert store.get(f"torch.rendezvous.run.1/{digest}/key") == b"value"
    assert infos[0].store.underlying_store == store
    again = group.meet(a, b)
    assert not again[0].store.check(["key"])


def test_rank_0_serves_the_workers_store(group: Group, distributed: Any) -> None:
    a, b = group.handler(), group.handler()
    infos = group.meet(a, b)
    ((host, port),) = addresses(infos)
    worker = distributed.TCPStore(host, port, is_master=False)
    worker.set("from", "a worker")
    assert worker.get("from") == b"a worker"


def test_a_join_timeout_is_torchs_error_too(group: Group) -> None:
    from torch.distributed.elastic.rendezvous import RendezvousTimeoutError as Torchs

    with pytest.raises(RendezvousTimeoutError, match="1 of 3 nodes ready") as caught:
        group.handler(3, 3, join=1).next_rendezvous()
    assert isinstance(caught.value, Torchs)


def test_torchs_own_backend_is_accepted(store: Any) -> None:
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import (
        C10dRendezvousBackend as Torchs,
    )

    with group_over(Torchs(store, "run"), store) as group:
        infos = group.meet(group.handler(), group.handler())
    assert sorted(info.rank for info in infos) == [0, 1]


def test_one_node_alone_over_a_backend_that_keeps_nothing(distributed: Any) -> None:
    params = RendezvousParameters("users", "", "run", 1, 1, local_addr="127.0.0.2")
    handler = create_handler(distributed.HashStore(), KeepsNothing(), params)
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size) == (0, 1)
    assert {host for host, _ in addresses([info])} == {"127.0.0.2"}
    info.store.set("key", "value")
    assert handler.shutdown()


@pytest.mark.parametrize(("value", "shares"), [("1", False), ("0", True), (None, True)])
def test_the_agents_store_can_be_turned_off(
    monkeypatch: pytest.MonkeyPatch, value: str | None, shares: bool
) -> None:
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    if value is not None:
        monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", value)
    params = RendezvousParameters("users", "", "run", 1, 1, local_addr="127.0.0.1")
    handler = create_handler(None, KeepsNothing(), params)
    assert handler.use_agent_store is shares


def test_the_registry_creates_the_handler() -> None:
    params = RendezvousParameters(
        "c10d", f"127.0.0.1:{free_port()}", "run", 1, 1, local_addr="127.0.0.1"
    )
    handler = get_rendezvous_handler(params)
    assert handler.get_backend() == "c10d"
    assert handler.next_rendezvous().world_size == 1
    assert handler.shutdown()


# -- in several processes --------------------------------------------------------------------------


class Child:
    """One c10d_node.py. `tell` does not wait for what it says; `said` does."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.rendezvous.c10d_node", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def tell(self, step: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(step + "\n")
        self.process.stdin.flush()

    def said(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, step: str) -> Any:
        self.tell(step)
        return self.said()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def children() -> Iterator[list[Child]]:
    children: list[Child] = []
    yield children
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(signal.SIGCONT)
        child.kill()
        child.process.communicate()


def started(children: list[Child], count: int, *arguments: str) -> list[Child]:
    new = [Child(*arguments) for _ in range(count)]
    children += new
    assert [child.said() for child in new] == ["ready"] * count
    return new


def met(children: list[Child]) -> list[list[Any]]:
    for child in children:
        child.tell("next")
    return [child.said() for child in children]


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["tcp", pytest.param("file", marks=pytest.mark.verify)])
def test_processes_meet_twice_and_end(children: list[Child], kind: str, tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}" if kind == "tcp" else str(tmp_path / "store")
    nodes = started(children, 3, endpoint, "3", "3", f"store_type={kind}")
    first, second = met(nodes), met(nodes)
    for infos in (first, second):
        assert sorted(rank for rank, *_ in infos) == [0, 1, 2]
        assert len({(host, port) for _, _, host, port, _ in infos}) == 1
        assert {port for *_, port, _ in infos} == {said for *_, said in infos}
    assert {port for *_, port, _ in first} != {port for *_, port, _ in second}
    for child in nodes:
        child.tell("shutdown")
    assert [child.said() for child in nodes] == [True] * 3
    assert [child.process.wait(WITHIN_S) for child in nodes] == [0] * 3


@pytest.mark.verify
@pytest.mark.processes
def test_nodes_survive_the_process_with_the_coordinator(
    children: list[Child], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("LEASE_TTL", "1"), ("ATTACH_GRACE", "2"), ("SCALE_UP_DELAY", "0")):
        monkeypatch.setenv(f"RALLYPOINT_{name}", seconds)
    path = str(tmp_path / "store")
    nodes = started(children, 3, path, "2", "3", "store_type=file", "last_call_timeout=10")
    first = met(nodes)
    assert {size for _, size, *_ in first} == {3}

    def the_host() -> list[Child]:
        hosts = [child for child in nodes if child.ask("hosts")]
        return hosts if len(hosts) == 1 else []

    (host,) = wait_until(the_host, WITHIN_S)  # no owner, for a moment, if its lease has expired
    host.kill()
    left = [child for child in nodes if child is not host]
    # Another is elected and misses the dead one: the survivors learn it, and continue without it.
    wait_until(lambda: all(child.ask("waiting") > 0 for child in left), WITHIN_S)
    second = met(left)
    assert sorted(rank for rank, *_ in second) == [0, 1]
    assert len({port for *_, port, _ in second}) == 1
    assert {port for *_, port, _ in second} != {port for *_, port, _ in first}
    assert any(child.ask("hosts") for child in left)


@pytest.mark.verify
@pytest.mark.processes
def test_a_frozen_store_host_delays_no_call_of_the_handler(children: list[Child]) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    (host,) = started(children, 1, endpoint, "2", "2", "is_host=1")
    timeouts: dict[str, Any] = {"read_timeout": 2, "join_timeout": 4, "close_timeout": 2}
    params = RendezvousParameters("c10d", endpoint, "run", 2, 2, is_host=False, **timeouts)
    backend, store = create_backend(params)
    handler = create_handler(store, backend, params)
    freeze(host.process)
    began_s = time.monotonic()
    for call, limit_s in ((handler.next_rendezvous, 4), (handler.is_closed, 2)):
        with takes_at_most(limit_s), pytest.raises(Exception, match="c10d"):
            call()
    with takes_at_most(2):
        handler.shutdown()
    assert time.monotonic() - began_s < 20
