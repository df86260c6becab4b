"""A handler that is a node: dropped handlers, deadlines, lost coordinators, and its options."""

from __future__ import annotations

import gc
import signal
import socket
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rallypoint import errors
from rallypoint.core.values import ChangeKind
from rallypoint.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousParameters,
    RendezvousTimeoutError,
    _held_node,
)
from rallypoint.rendezvous._node_handler import NodeRendezvousHandler
from rallypoint.rendezvous.rallypoint_rendezvous import OPTIONS, create_handler, torchrun_handler
from tests.loops import open_sockets
from tests.ports import free_port
from tests.rendezvous.backends import takes_at_most
from tests.rendezvous.node_handlers import SOON_S, exit_barrier, told
from tests.rendezvous.nodes import Nodes, nodes_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("no_torch")]


# -- handlers that are not shut down ---------------------------------------------------------------


def test_a_handler_that_is_dropped_leaves(nodes: Nodes) -> None:
    a, b = (nodes.handler("1:2", expected_nodes=2) for _ in range(2))
    infos = nodes.meet(a, b)
    store = infos[1].store
    store.set("key", "value")
    nodes._made.remove(b)
    gone = weakref.ref(b)
    del b
    gc.collect()
    assert gone() is None
    told(a)
    with pytest.raises((errors.CoordinatorLostError, errors.RoundBrokenError), match="left"):
        store.get("key")
    assert a._node is not None
    assert a._node.change is not None
    assert a._node.change.kind is ChangeKind.NODE_LEFT  # it said goodbye
    wait_until(lambda: len(_held_node._held) == 1, SOON_S)


def test_a_dropped_handler_leaves_no_socket_and_no_task(nodes: Nodes) -> None:
    before = open_sockets()
    handler = nodes.handler("1")
    handler.next_rendezvous()
    door = handler._portal
    assert door is not None
    assert open_sockets() - before
    nodes._made.remove(handler)
    del handler
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        gc.collect()
        wait_until(lambda: not _held_node._held, SOON_S)
        wait_until(lambda: not open_sockets() - before, SOON_S)
        gc.collect()


def test_shutdown_takes_no_longer_than_the_close_timeout(tmp_path: Path) -> None:
    """Also if this node hosts the coordinator, and the others have not said goodbye yet."""
    with nodes_of(tmp_path, serves=False) as nodes:
        nodes.endpoint = f"127.0.0.1:{nodes.port}"
        host = nodes.handler("2", is_host=True, close_timeout=1, linger=SOON_S)
        other = nodes.handler("2", is_host=False)
        nodes.meet(host, other)
        with takes_at_most(1):
            assert host.shutdown()
        # The coordinator is still there, and tells the other how the run has ended.
        wait_until(other.is_closed, SOON_S)
        with pytest.raises(RendezvousClosedError, match="a node has finished"):
            other.next_rendezvous()
        assert other.shutdown()
        wait_until(lambda: not _held_node._held, SOON_S)


def test_a_done_host_shuts_down_in_time_and_keeps_coordinating(tmp_path: Path) -> None:
    with nodes_of(tmp_path, serves=False) as nodes:
        nodes.endpoint = f"127.0.0.1:{nodes.port}"
        host = nodes.handler("2", is_host=True, close_timeout=1)
        other = nodes.handler("2", is_host=False)
        infos = nodes.meet(host, other)
        with pytest.raises(errors.StoreTimeoutError):
            exit_barrier(infos[0].store, 2, 0.5)
        with takes_at_most(1):
            assert host.shutdown()
        infos[1].store.set("still", "there")
        exit_barrier(infos[1].store, 2, 300)
        assert other.shutdown()
        wait_until(lambda: not _held_node._held, SOON_S)


# -- timeouts, and peers that do not answer ------------------------------------------------------


def test_no_round_within_the_join_timeout_is_an_error(nodes: Nodes) -> None:
    a, b = nodes.handler("2", join_timeout=3), nodes.handler("2")
    assert not a.is_closed()  # admitted, however long that takes
    with pytest.raises(RendezvousTimeoutError, match="1 of 2 nodes ready") as caught:
        a.next_rendezvous()
    assert isinstance(caught.value.__cause__, errors.JoinTimeoutError)
    assert not b.is_closed()
    assert [info.world_size for info in nodes.meet(a, b)] == [2, 2]


def test_the_last_call_has_torch_s_name_too(nodes: Nodes) -> None:
    config: dict[str, Any] = {"last_call": None, "last_call_timeout": "0.2"}
    a, b = nodes.handler("2:9", **config), nodes.handler("2:9", **config)
    assert [info.world_size for info in nodes.meet(a, b)] == [2, 2]


def test_a_missing_coordinator_is_an_error(tmp_path: Path) -> None:
    port = free_port()
    with nodes_of(tmp_path, serves=False) as nodes:
        nodes.endpoint = f"127.0.0.1:{port}"
        a = nodes.handler("2", read_timeout=0.5, is_host=False)
        began_s = time.monotonic()
        with pytest.raises(RendezvousConnectionError) as caught:
            a.next_rendezvous()
        assert time.monotonic() - began_s < SOON_S
        for part in ("127.0.0.1", str(port), "refused"):
            assert part in str(caught.value)
        assert isinstance(caught.value.__cause__, errors.UnreachableError)
        assert a.shutdown()


def test_another_program_at_the_endpoint_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, nodes_of(tmp_path, serves=False) as run:
        port = server.getsockname()[1]
        run.endpoint = f"127.0.0.1:{port}"
        a = run.handler("2", read_timeout=0.5, is_host=False)
        with pytest.raises(RendezvousConnectionError, match=str(port)):
            a.next_rendezvous()  # accepted by the system, and never answered
        a.shutdown()


def _closes(handler: NodeRendezvousHandler) -> None:
    handler.set_closed()


def _waits(handler: NodeRendezvousHandler) -> None:
    handler.next_rendezvous()


@pytest.mark.verify
@pytest.mark.parametrize("call", [_closes, _waits])
def test_a_frozen_coordinator_delays_no_call_past_its_deadline(
    nodes_alone: Nodes, call: Callable[[NodeRendezvousHandler], None]
) -> None:
    limits: dict[str, Any] = {"join_timeout": 2, "close_timeout": 2, "goodbye_timeout": 0.5}
    a, b = (nodes_alone.handler("2", read_timeout=2, **limits) for _ in range(2))
    assert [a.is_closed(), b.is_closed()] == [False, False]  # admitted, so that they meet at once
    info = nodes_alone.meet(a, b)[0]
    late = nodes_alone.handler("2", read_timeout=2, **limits)
    nodes_alone.freeze()
    with takes_at_most(2), pytest.raises((RendezvousConnectionError, RendezvousTimeoutError)):
        call(a)
    with takes_at_most(2), pytest.raises(RendezvousTimeoutError, match="no answer") as caught:
        late.next_rendezvous()
    assert isinstance(caught.value.__cause__, RendezvousConnectionError)
    info.store.set_timeout(timedelta(seconds=0.1))
    with takes_at_most(0.1), pytest.raises(errors.RallypointError):
        info.store.get("key")
    with takes_at_most(2.5):
        assert not b.shutdown()


def test_a_coordinator_that_is_lost_for_good_is_an_error(nodes_alone: Nodes) -> None:
    a, b = (nodes_alone.handler("2", coordinator_lost_after=0.3) for _ in range(2))
    nodes_alone.meet(a, b)
    assert nodes_alone.serving is not None
    nodes_alone.serving.signal(signal.SIGKILL)
    nodes_alone.serving.popen.wait()

    def is_told() -> bool:
        try:
            return a.num_nodes_waiting() > 0
        except RendezvousConnectionError:
            return True

    wait_until(is_told, SOON_S)
    with pytest.raises(RendezvousConnectionError):
        a.num_nodes_waiting()


def test_a_second_node_of_one_name_is_refused(nodes: Nodes) -> None:
    one = nodes.handler("1:2", node_name="same")
    one.next_rendezvous()
    with pytest.raises(RendezvousError, match="same") as caught:
        nodes.handler("1:2", node_name="same").next_rendezvous()
    assert isinstance(caught.value.__cause__, errors.NameTakenError)
    assert one.num_nodes_waiting() == 0


# -- options -------------------------------------------------------------------------------------


def _made(endpoint: str = "127.0.0.1:29400", nnodes: int = 2, **config: Any) -> object:
    params = RendezvousParameters("rallypoint", endpoint, "run", 1, nnodes, **config)
    return create_handler(params)


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no option 'last_cal'") as caught:
        _made(last_cal="3")
    assert all(option in str(caught.value) for option in OPTIONS)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("join_timeout", "soon"),
        ("last_call", "-1"),
        ("read_timeout", "nan"),
        ("close_timeout", "x"),
        ("close_timeout", "0"),
        ("is_host", "perhaps"),
        ("expected_nodes", "two"),
        ("rank_policy", "best"),
        ("host_coordinator", "maybe"),
        ("token_file", "/nowhere/token_file"),
        ("token_file", 1.5),
    ],
)
def test_a_bad_value_names_its_option(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        create_handler(
            RendezvousParameters(
                "rallypoint", "127.0.0.1:29400", "run", 1, 2, None, **{option: value}
            )
        )


@pytest.mark.parametrize(
    ("config", "variable", "stop_s"),
    [({}, "", 30.0), ({"stop_s": "8"}, "12", 8.0), ({"stop": "8"}, "", 8.0), ({}, "12", 12.0)],
)
def test_the_stop_time_is_torchruns_unless_it_is_given(
    config: dict[str, str], variable: str, stop_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALLYPOINT_STOP", variable)
    params = RendezvousParameters("rallypoint", "http://127.0.0.1:1", "run", 1, 1, **config)
    assert create_handler(params)._plan.node.stop_s == stop_s


def test_an_option_by_two_names_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'last_call.*' and 'last_call.*' are the same"):
        _made(last_call="3", last_call_timeout="4")


def test_more_than_one_node_needs_an_endpoint() -> None:
    with pytest.raises(ValueError, match="needs an endpoint"):
        _made(endpoint="")
    _made(endpoint="", nnodes=1)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "file:///tmp", "etcd://127.0.0.1:1"])
def test_the_id_of_a_job_without_one_is_asked_for_where_others_meet(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun and `accelerate launch` pass on `none` then: two such jobs would be one."""
    params = RendezvousParameters("rallypoint", endpoint, "none", 1, 2, local_addr="127.0.0.1")
    with pytest.raises(ValueError, match="needs a run id"):
        create_handler(params)
    monkeypatch.setenv("RALLYPOINT_RUN_ID", "own")
    assert create_handler(params).get_run_id() == "own"


def test_the_id_of_a_job_with_its_own_port_may_be_torchruns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    params = RendezvousParameters("rallypoint", "127.0.0.1:1", "none", 1, 2)
    assert create_handler(params).get_run_id() == "none"
    [warning] = caplog.messages
    assert "all nodes at 127.0.0.1:1 without --rdzv-id are one job" in warning
    monkeypatch.setenv("RALLYPOINT_RUN_ID", "own")
    assert create_handler(params).get_run_id() == "own"
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("endpoint", ["127.0.0.1:1", "127.0.0.1"])
def test_another_program_that_calls_torchrun_needs_an_id_at_any_place(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` has no option for it, and one port for all jobs by default."""
    params = RendezvousParameters("rallypoint", endpoint, "none", 2, 2, quiet=True)
    with pytest.raises(ValueError, match="needs a run id") as caught:
        torchrun_handler()(params)
    assert "RALLYPOINT_RUN_ID" in str(caught.value)
    monkeypatch.setattr("sys.argv", ["/usr/bin/torchrun", "train.py"])
    assert torchrun_handler()(params).get_run_id() == "none"


def test_an_id_is_asked_for_where_two_jobs_may_have_a_port_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for endpoint, ports in (("127.0.0.1", "29400:29401"), ("127.0.0.1:1,127.0.0.2:1", "1:2")):
        monkeypatch.setenv("RALLYPOINT_PORT_RANGE", ports)
        with pytest.raises(ValueError, match="needs a run id"):
            create_handler(RendezvousParameters("rallypoint", endpoint, "none", 2, 2))


def test_one_node_may_have_any_port() -> None:
    """torch documents `--rdzv-endpoint=localhost:0` for a single node."""
    handler = _made(endpoint="localhost:0", nnodes=1)
    assert isinstance(handler, NodeRendezvousHandler)
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size) == (0, 1)
    handler.shutdown()
    with pytest.raises(ValueError, match="'0' is not a port"):
        _made(endpoint="localhost:0", nnodes=2)


def test_one_node_needs_no_coordinator(tmp_path: Path) -> None:
    with nodes_of(tmp_path, serves=False) as nodes:
        nodes.endpoint = ""
        alone = nodes.handler("1")
        info = alone.next_rendezvous()
        assert (info.rank, info.world_size) == (0, 1)
        assert alone.next_rendezvous().world_size == 1
        assert alone.shutdown()


def test_without_torch_errors_are_only_ours(nodes: Nodes) -> None:
    a = nodes.handler("2", join_timeout=0.1)
    assert not a.is_closed()  # admitted, however long that takes
    with pytest.raises(RendezvousTimeoutError) as caught:
        a.next_rendezvous()
    assert type(caught.value) is RendezvousTimeoutError
    assert sys.modules.get("torch.distributed.elastic.rendezvous.api") is None
