"""The static backend, over torch's store and over ours."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rallypoint.errors import StoreTimeoutError
from rallypoint.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
    _store_client,
    _store_probe,
    _torch_bridge,
)
from rallypoint.rendezvous._store_probe import StoreKind
from rallypoint.rendezvous.registry import get_rendezvous_handler
from rallypoint.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous, create_rdzv_handler
from tests.ports import free_port

SRC = Path(__file__).parents[2] / "src"
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")


def parameters(endpoint: Any, nodes: int = 1, **options: Any) -> RendezvousParameters:
    return RendezvousParameters("static", endpoint, "run", nodes, nodes, **options)


# -- the parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["localhost", "10.0.0.1", "[::1]"])
def test_an_endpoint_needs_a_port(endpoint: str) -> None:
    with pytest.raises(ValueError, match="--master-port"):
        create_rdzv_handler(parameters(endpoint, rank=0))


@pytest.mark.parametrize("endpoint", ["", "  ", None])
def test_an_endpoint_has_to_be_given(endpoint: str | None) -> None:
    with pytest.raises(ValueError, match="--master-addr"):
        create_rdzv_handler(parameters(endpoint, rank=0))


@pytest.mark.parametrize("endpoint", ["localhost:99999", "localhost:", "a/b:12"])
def test_an_endpoint_that_cannot_be_read_is_an_error(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        create_rdzv_handler(parameters(endpoint, rank=0))


@pytest.mark.parametrize("options", [{}, {"rank": None}])
def test_a_rank_has_to_be_given(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--node-rank"):
        create_rdzv_handler(parameters("localhost:12", **options))


@pytest.mark.parametrize("endpoint", ["[2001:db8::7]:90", "[::1]:90"])
def test_an_ipv6_address_may_be_in_brackets(endpoint: str) -> None:
    with pytest.raises(ValueError, match="rank"):
        create_rdzv_handler(parameters(endpoint))
    handler = create_rdzv_handler(parameters(endpoint, rank=0))
    assert isinstance(handler, StaticTCPRendezvous)
    assert f"[{handler.master_addr}]:{handler.master_port}" == endpoint


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rank": "first"}, "'rank' does not represent a valid integer"),
        ({"rank": 2}, "'rank' is 2, but of 2 nodes the ranks are 0 to 1"),
        ({"rank": -1}, "'rank' is -1"),
        ({"rank": 0, "timeout": "soon"}, "'timeout' does not represent a valid integer"),
        ({"rank": 0, "timeout": 0}, "'timeout' is in seconds, at least 1, not 0"),
        ({"rank": 0, "time_out": 5}, "no configuration option 'time_out'; it has rank and timeout"),
    ],
)
def test_a_bad_option_is_an_error_that_names_it(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        create_rdzv_handler(parameters("localhost:12", 2, **options))


def test_a_handler_has_its_rank_before_the_meeting() -> None:
    handler = get_rendezvous_handler(parameters("localhost:123", 4, rank="3", timeout="60"))
    assert isinstance(handler, StaticTCPRendezvous)
    assert handler.get_backend() == "static"
    assert handler.get_run_id() == "run"
    assert handler.use_agent_store is True
    assert (handler.rank, handler.world_size) == (3, 4)
    assert handler.timeout == timedelta(seconds=60)
    assert handler.num_nodes_waiting() == 0
    handler.set_closed()
    assert handler.is_closed() is False
    assert handler.shutdown() is True
    assert handler.shutdown() is True


def test_the_meeting_has_ten_minutes_by_default() -> None:
    handler = create_rdzv_handler(parameters("localhost:123", rank=0))
    assert isinstance(handler, StaticTCPRendezvous)
    assert handler.timeout == timedelta(minutes=10)


# -- meeting, over both kinds of store -----------------------------------------------------------


@pytest.fixture(params=["ours", pytest.param("torch", marks=needs_torch)])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose store: ours is what there is without torch."""
    if request.param == "ours":
        monkeypatch.setattr(_torch_bridge, "is_available", lambda: False)
    return str(request.param)


@pytest.fixture
def meet(kind: str) -> Iterator[Callable[..., list[RendezvousInfo]]]:
    """Lets all nodes of a run meet, each in a thread; their rounds in the order of rank."""
    handlers: list[RendezvousHandler] = []

    def go(nodes: int, port: int, timeout: int = 30) -> list[RendezvousInfo]:
        found: dict[int, RendezvousInfo] = {}
        made = [
            create_rdzv_handler(parameters(f"localhost:{port}", nodes, rank=rank, timeout=timeout))
            for rank in range(nodes)
        ]
        handlers.extend(made)

        def one(rank: int) -> None:
            found[rank] = made[rank].next_rendezvous()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in reversed(range(nodes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == nodes
        return [found[rank] for rank in range(nodes)]

    yield go
    for handler in handlers:
        assert handler.shutdown() is True


@pytest.mark.sockets
def test_one_node_may_call_next_rendezvous_often(kind: str) -> None:
    port = free_port()
    handler = create_rdzv_handler(parameters(f"localhost:{port}", rank=0))
    first, second = handler.next_rendezvous(), handler.next_rendezvous()
    for info in (first, second):
        assert (info.rank, info.world_size) == (0, 1)
        assert info.bootstrap_store_info == RendezvousStoreInfo("localhost", port)
    first.store.set("key", "value")
    assert second.store.get("key") == b"value"


@pytest.mark.sockets
def test_nodes_meet_in_one_store_and_keep_their_ranks(meet: Callable[..., Any]) -> None:
    port = free_port()
    infos = meet(3, port)
    assert [(info.rank, info.world_size) for info in infos] == [(0, 3), (1, 3), (2, 3)]
    assert {str(info.bootstrap_store_info) for info in infos} == {
        str(RendezvousStoreInfo("localhost", port))
    }
    infos[2].store.set("key", b"\x00value")
    assert infos[0].store.get("key") == b"\x00value"
    assert [info.store.add("count", 1) for info in infos] == [1, 2, 3]
    infos[1].store.wait(["key", "count"], timedelta(seconds=10))
    assert infos[1].store.multi_get(["key", "count"]) == [b"\x00value", b"3"]


@pytest.mark.sockets
def test_the_store_has_torchs_calls(meet: Callable[..., Any]) -> None:
    store = meet(1, free_port())[0].store
    before = store.num_keys()
    store.multi_set(["a", "b"], ["1", b"2"])
    store.append("a", "0")
    assert store.get("a") == b"10"
    assert store.compare_set("b", "2", "3") == b"3"
    assert store.compare_set("b", "2", "4") == b"3"
    assert store.compare_set("absent", "expected", "x") == b"expected"
    assert store.check(["a", "b"]) is True
    assert store.check(["absent"]) is False
    assert store.num_keys() - before == 2
    assert store.delete_key("a") is True
    assert store.delete_key("a") is False
    assert store.timeout == timedelta(seconds=30)


@pytest.mark.sockets
def test_a_key_that_is_not_set_in_time_is_a_timeout_that_names_it(
    meet: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_store_client, "ANSWER_MARGIN_S", 20)  # the server says it, however late
    store = meet(1, free_port())[0].store
    store.set_timeout(timedelta(seconds=0.05))
    expected = StoreTimeoutError if kind == "ours" else RuntimeError
    with pytest.raises(expected, match="run/absent"):
        store.get("absent")
    with pytest.raises(expected, match="run/absent"):
        store.wait(["absent"], timedelta(seconds=0.01))


@pytest.mark.sockets
def test_port_0_is_replaced_by_the_bound_port(kind: str) -> None:
    info = create_rdzv_handler(parameters("localhost:0", rank=0)).next_rendezvous()
    assert info.bootstrap_store_info is not None
    assert info.bootstrap_store_info.master_port > 0


@pytest.mark.sockets
def test_runs_at_one_port_have_keys_of_their_own(kind: str) -> None:
    endpoint = f"localhost:{free_port()}"
    stores = [
        create_rdzv_handler(RendezvousParameters("static", endpoint, run_id, 1, 1, rank=0))
        .next_rendezvous()
        .store
        for run_id in ("run-1", "run-2")
    ]
    stores[0].set("key", "1")
    assert stores[1].check(["key"]) is False
    stores[1].set("key", "2")
    assert stores[0].get("key") == b"1"


@pytest.mark.sockets
def test_rank_0_names_the_missing_nodes(kind: str) -> None:
    endpoint = f"localhost:{free_port()}"
    # Another run's, so that the store is there before rank 0 begins to wait.
    serving = create_rdzv_handler(RendezvousParameters("static", endpoint, "other", 1, 1, rank=0))
    serving.next_rendezvous()
    create_rdzv_handler(parameters(endpoint, 12, rank=5)).next_rendezvous()
    host = create_rdzv_handler(parameters(endpoint, 12, rank=0, timeout=3))
    with pytest.raises(RendezvousTimeoutError) as raised:
        host.next_rendezvous()
    told = str(raised.value)
    assert f"10 of 12 nodes did not connect to {endpoint} within 3 s" in told
    assert told.endswith("1, 2, 3, 4, 6, 7, 8, 9, ...")


@pytest.mark.sockets
def test_an_endpoint_without_a_listener_is_an_error_in_time(kind: str) -> None:
    port = free_port()
    handler = create_rdzv_handler(parameters(f"localhost:{port}", 2, rank=1, timeout=1))
    with pytest.raises(RendezvousConnectionError, match=f"localhost:{port}.* by node rank 1"):
        handler.next_rendezvous()


@pytest.mark.sockets
@needs_torch
def test_no_client_of_torch_is_created_before_the_port_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits long between two tries, and prints its stack when its timeout is over."""
    monkeypatch.delattr(_torch_bridge, "tcp_store")
    port = free_port()
    handler = create_rdzv_handler(parameters(f"localhost:{port}", 2, rank=1, timeout=1))
    with pytest.raises(RendezvousConnectionError, match="within 1 s: Connection refused"):
        handler.next_rendezvous()


@pytest.mark.sockets
def test_a_port_that_is_taken_is_an_error(kind: str) -> None:
    with closing(socket.create_server(("", 0), family=socket.AF_INET)) as other:
        endpoint = f"localhost:{other.getsockname()[1]}"
        handler = create_rdzv_handler(parameters(endpoint, rank=0, timeout=3))
        with pytest.raises(RendezvousConnectionError, match=f"(?i){endpoint}.*address.*in use"):
            handler.next_rendezvous()


@pytest.mark.sockets
def test_a_failed_handler_can_be_called_again(kind: str) -> None:
    with closing(socket.create_server(("", 0), family=socket.AF_INET)) as other:
        port = other.getsockname()[1]
        handler = create_rdzv_handler(parameters(f"localhost:{port}", rank=0, timeout=3))
        with pytest.raises(RendezvousConnectionError):
            handler.next_rendezvous()
    assert handler.next_rendezvous().rank == 0


# -- when nodes differ, and where there is no torch ----------------------------------------------

RANK_0_WITHOUT_TORCH = (
    f"import sys; sys.path.insert(0, {str(SRC)!r})"
    + """
import sys
sys.modules["torch"] = None
from rallypoint.rendezvous import RendezvousParameters
from rallypoint.rendezvous.registry import get_rendezvous_handler
params = RendezvousParameters("static", "localhost:0", "run", 1, 1, rank=0)
info = get_rendezvous_handler(params).next_rendezvous()
info.store.set("key", "value")
print(info.store.underlying_store.port, flush=True)
sys.stdin.read()
"""
)


@pytest.fixture
def rank_0_without_torch(rank_0_without_torch_pid: tuple[int, int]) -> int:
    """The port of a store that another process serves, in which torch cannot be imported."""
    return rank_0_without_torch_pid[0]


@pytest.fixture
def rank_0_without_torch_pid() -> Iterator[tuple[int, int]]:
    """The same, and the process."""
    with subprocess.Popen(
        [sys.executable, "-c", RANK_0_WITHOUT_TORCH],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
        process.send_signal(signal.SIGCONT)
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.processes
def test_processes_without_torch_meet(
    rank_0_without_torch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_torch_bridge, "is_available", lambda: False)
    params = parameters(f"localhost:{rank_0_without_torch}", 2, rank=1, timeout=20)
    assert create_rdzv_handler(params).next_rendezvous().store.get("key") == b"value"


@needs_torch
@pytest.mark.processes
def test_a_node_with_torch_says_that_rank_0_has_none(
    rank_0_without_torch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes no client of torch's, which would go on in the background for its timeout."""
    monkeypatch.delattr(_torch_bridge, "tcp_store")
    params = parameters(f"localhost:{rank_0_without_torch}", 2, rank=1, timeout=60)
    with pytest.raises(RendezvousConnectionError, match="node rank 0 has no PyTorch"):
        create_rdzv_handler(params).next_rendezvous()


@needs_torch
@pytest.mark.processes
def test_a_stalled_rank_0_without_torch_is_recognized_later(
    rank_0_without_torch_pid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it goes on it says nothing, and torch's own client would ask it until the timeout."""
    port, pid = rank_0_without_torch_pid
    kinds, ask = [], _store_probe.kind_at

    def kind_at(*args: Any) -> StoreKind:
        kinds.append(ask(*args))
        os.kill(pid, signal.SIGCONT)
        return kinds[-1]

    monkeypatch.setattr(_store_probe, "kind_at", kind_at)
    monkeypatch.delattr(_torch_bridge, "tcp_store")
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    params = parameters(f"localhost:{port}", 2, rank=1, timeout=60)
    with pytest.raises(RendezvousConnectionError, match="node rank 0 has no PyTorch"):
        create_rdzv_handler(params).next_rendezvous()
    assert (kinds[0], kinds[-1]) == (StoreKind.UNKNOWN, StoreKind.OURS)


@pytest.mark.sockets
@needs_torch
def test_a_node_without_torch_says_that_rank_0_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _torch_bridge.tcp_store("localhost", 0, is_server=True, timeout_s=20)
    monkeypatch.setattr(_torch_bridge, "is_available", lambda: False)
    params = parameters(f"localhost:{store.port}", 2, rank=1, timeout=60)
    with pytest.raises(RendezvousConnectionError, match="it is a PyTorch TCPStore"):
        create_rdzv_handler(params).next_rendezvous()


FROZEN_TORCH_STORE = """
import os, signal, sys
from torch.distributed import TCPStore
store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@needs_torch
@pytest.mark.processes
def test_a_stopped_store_of_torch_delays_no_call_past_the_timeout() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FROZEN_TORCH_STORE], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        handler = create_rdzv_handler(parameters(f"localhost:{port}", 2, rank=1, timeout=1))
        began_s = time.monotonic()
        with pytest.raises(RendezvousConnectionError, match=f"localhost:{port} cannot be reached"):
            handler.next_rendezvous()
        assert time.monotonic() - began_s < 20
        process.kill()
