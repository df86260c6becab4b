"""A handler that is a node: rounds, what it is told, how it ends, and its errors. No torch here.

What of it needs torch is in test_torch_nodes.py, and with torchrun's agents in tests/torchrun.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rallypoint import errors
from rallypoint.core.values import ChangeKind, Outcome
from rallypoint.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousParameters,
    RendezvousTimeoutError,
    _held_node,
    _torch_bridge,
)
from rallypoint.rendezvous._node_handler import NodeRendezvousHandler
from rallypoint.rendezvous._stores import ASSIGNED_RANKS, ROLE_INFO, TERMINAL_STATE
from rallypoint.rendezvous.rallypoint_rendezvous import OPTIONS, create_handler
from tests.agent.processes import wait_until
from tests.loops import open_sockets
from tests.ports import free_port
from tests.rendezvous.nodes import WITHIN_S, Nodes, nodes_of, without_torch

pytestmark = pytest.mark.processes

SOON_S = 20.0
"""Far above what a push takes, far below every timeout that is not the one under test."""
LATE_S = 5.0


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
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


@contextlib.contextmanager
def takes_at_most(limit_s: float) -> Iterator[None]:
    """It ends by this deadline; so much later as a busy machine may be."""
    began_s = time.monotonic()
    yield
    took_s = time.monotonic() - began_s
    assert took_s < limit_s + LATE_S, f"{took_s:.1f} s"


def told(handler: NodeRendezvousHandler) -> None:
    """Wait until the handler calls its node to rendezvous again."""
    wait_until(lambda: handler.num_nodes_waiting() > 0, SOON_S)


def exit_barrier(store: Any, size: int, timeout_s: float) -> None:
    """As torchrun's agent does when its workers have finished: these calls, and no others."""
    store.set_timeout(timedelta(seconds=timeout_s))
    if store.add(f"{TERMINAL_STATE}/num_members", 1) == size:
        store.set(f"{TERMINAL_STATE}/last_member", "<val_ignored>")
    store.wait([f"{TERMINAL_STATE}/last_member"])


# -- rounds --------------------------------------------------------------------------------------


def test_nodes_meet_and_agree(nodes: Nodes) -> None:
    a, b = nodes.handler("2"), nodes.handler("2")
    infos = nodes.meet(a, b)
    assert sorted(info.rank for info in infos) == [0, 1]
    assert [info.world_size for info in infos] == [2, 2]
    one, other = (info.bootstrap_store_info for info in infos)
    assert one == other
    assert one is not None
    assert one.master_addr == "127.0.0.1"
    infos[0].store.set("key", "value")
    assert infos[1].store.get("key") == b"value"
    assert (a.get_backend(), a.get_run_id()) == ("rallypoint", nodes.run_id)
    assert not a.use_agent_store


def test_the_port_offered_is_held_for_rank_0_and_another_one_in_each_round(nodes: Nodes) -> None:
    a, b = nodes.handler("2"), nodes.handler("2")
    seen = []
    for _ in range(3):
        infos = nodes.meet(a, b)
        ports = {
            info.bootstrap_store_info.master_port for info in infos if info.bootstrap_store_info
        }
        assert len(ports) == 1
        port = ports.pop()
        with socket.socket() as sock, pytest.raises(OSError, match="in use"):
            sock.bind(("127.0.0.1", port))  # not anybody's
        with socket.create_server(("127.0.0.1", port)):  # but rank 0's, with SO_REUSEADDR
            pass
        seen.append(port)
    assert len(set(seen)) == 3


def test_a_newcomer_is_told_of_and_let_in(nodes: Nodes) -> None:
    a, b, c = (nodes.handler() for _ in range(3))
    first = nodes.meet(a, b)
    assert (a.num_nodes_waiting(), b.num_nodes_waiting()) == (0, 0)
    call = nodes.start(c.next_rendezvous)
    told(a)
    told(b)
    second = [*nodes.meet(a, b), call.result(SOON_S)]
    assert [info.world_size for info in second] == [3, 3, 3]
    assert [info.rank for info in second[:2]] == [info.rank for info in first]
    assert a.num_nodes_waiting() == 0


def test_a_loss_is_told_of_without_any_failure(nodes: Nodes) -> None:
    """Else torchrun would go on until a collective gives up (pytorch #111646)."""
    a, b, c = (nodes.handler(last_call=WITHIN_S) for _ in range(3))
    nodes.meet(a, b, c)
    nodes.vanish(c)
    told(a)
    told(b)
    assert [info.world_size for info in nodes.meet(a, b)] == [2, 2]


def test_who_rendezvouses_again_ends_the_round_for_all(nodes: Nodes) -> None:
    a, b = nodes.handler("2"), nodes.handler("2")
    old = nodes.meet(a, b)
    call = nodes.start(a.next_rendezvous)
    told(b)
    with pytest.raises(errors.RoundBrokenError):
        old[1].store.get("what nobody writes")
    assert b.next_rendezvous().world_size == 2
    assert call.result(SOON_S).store.num_keys() == 0
    with pytest.raises(errors.RoundBrokenError):
        old[0].store.set("key", "late")


def test_num_nodes_waiting_asks_nobody(nodes_alone: Nodes) -> None:
    a, b = nodes_alone.handler("2"), nodes_alone.handler("2")
    assert a.num_nodes_waiting() == 0
    nodes_alone.meet(a, b)
    nodes_alone.freeze()
    began_s = time.monotonic()
    assert [a.num_nodes_waiting() for _ in range(1000)] == [0] * 1000
    assert time.monotonic() - began_s < LATE_S


def test_a_round_that_ends_while_torchrun_assigns_ranks_lets_its_agent_go_on(nodes: Nodes) -> None:
    a, b = nodes.handler(), nodes.handler()
    infos = nodes.meet(a, b)
    zero, one = sorted((*zip(infos, (a, b), strict=True),), key=lambda pair: pair[0].rank)
    store = zero[0].store
    store.set(f"{ROLE_INFO}0", b'{"role": "default", "rank": 0, "local_world_size": 4}')
    keys = [f"{ROLE_INFO}0", f"{ROLE_INFO}1"]
    call = nodes.start(store.multi_get, keys)
    nodes.vanish(one[1])
    roles = call.result(SOON_S)
    assert [b'"local_world_size": 4' in role for role in roles] == [True, True]
    store.multi_set([f"{ASSIGNED_RANKS}0", f"{ASSIGNED_RANKS}1"], ["[]", "[]"])
    assert store.get(f"{ASSIGNED_RANKS}1") == b"[4, 8, 4, 8]"
    told(zero[1])


# -- who is done ---------------------------------------------------------------------------------


def test_who_is_done_looks_well_and_the_run_ends_with_the_last_one(nodes: Nodes) -> None:
    a, b, late = (nodes.handler() for _ in range(3))
    first, second = nodes.meet(a, b)
    done = nodes.start(exit_barrier, first.store, 2, 300)
    wait_until(lambda: a._is_done, SOON_S)
    standby = nodes.start(late.next_rendezvous)
    # The newcomer attaches before its call can be answered, and an announcement would be at once.
    wait_until(lambda: late._node is not None and late._node._machine.is_standby, SOON_S)
    assert (a.num_nodes_waiting(), b.num_nodes_waiting()) == (0, 0)
    assert not done.done()
    exit_barrier(second.store, 2, 300)
    done.result(SOON_S)
    assert a.shutdown()
    assert b.shutdown()
    with pytest.raises(RendezvousGracefulExitError, match="all nodes have finished"):
        standby.result(SOON_S)


def test_who_gives_up_the_exit_barrier_leaves_and_closes_nothing(nodes: Nodes) -> None:
    """torchrun's agent does so after 300 s; the others' workers may take longer."""
    a, b = nodes.handler("2"), nodes.handler("2")
    first, second = nodes.meet(a, b)
    with pytest.raises(errors.StoreTimeoutError):
        exit_barrier(first.store, 2, 1)
    assert a.shutdown()
    second.store.set("still", "there")
    assert (b.is_closed(), b.num_nodes_waiting()) == (False, 0)
    exit_barrier(second.store, 2, 300)
    assert b.is_closed()


def test_a_loss_frees_who_waits_in_the_exit_barrier(nodes: Nodes) -> None:
    a, b, c = (nodes.handler("1:3", last_call=WITHIN_S) for _ in range(3))
    first, second, _ = nodes.meet(a, b, c)
    done = nodes.start(exit_barrier, first.store, 3, 300)
    wait_until(lambda: a._is_done, SOON_S)
    nodes.vanish(c)
    done.result(SOON_S)
    assert a.num_nodes_waiting() == 0
    assert a.shutdown()
    told(b)
    assert b.next_rendezvous().world_size == 1
    with pytest.raises(errors.RoundBrokenError):
        second.store.get("key")


# -- closing -------------------------------------------------------------------------------------


def test_set_closed_ends_the_run_for_all(nodes: Nodes) -> None:
    a, b = nodes.handler("2"), nodes.handler("2")
    nodes.meet(a, b)
    assert not b.is_closed()
    a.set_closed()
    wait_until(b.is_closed, SOON_S)
    assert b.num_nodes_waiting() == 0
    with pytest.raises(RendezvousClosedError, match="closed by one of its nodes"):
        b.next_rendezvous()
    b.set_closed()  # again, by another: nothing happens
    late = nodes.handler("2")
    assert late.is_closed()
    with pytest.raises(RendezvousClosedError):
        late.next_rendezvous()


def test_shutdown_closes_the_run_and_may_be_called_again(nodes: Nodes) -> None:
    a, b = nodes.handler("2"), nodes.handler("2")
    nodes.meet(a, b)
    assert a.shutdown()
    assert a.shutdown()
    wait_until(b.is_closed, SOON_S)
    assert a.is_closed()
    with pytest.raises(RendezvousClosedError, match="shut down by this node"):
        a.next_rendezvous()


def test_shutdown_while_an_error_is_handled_says_which(nodes: Nodes) -> None:
    a, b = nodes.handler("2"), nodes.handler("2")
    nodes.meet(a, b)
    try:
        raise ValueError("bad batch in shard 7")
    except ValueError:
        a.shutdown()
    wait_until(b.is_closed, SOON_S)
    with pytest.raises(RendezvousClosedError, match=r"failed.*ValueError: bad batch in shard 7"):
        b.next_rendezvous()


def test_a_node_that_could_not_get_in_leaves_only(nodes: Nodes) -> None:
    a, b = nodes.handler("2"), nodes.handler("2")
    nodes.meet(a, b)
    other = nodes.handler("1:9")
    with pytest.raises(RendezvousError, match="min_nodes"):
        other.next_rendezvous()
    assert other.shutdown()
    alone = nodes.handler("2", join_timeout=0.2)
    assert not alone.is_closed()  # let in, however long that takes
    call = nodes.start(alone.next_rendezvous)  # on standby: it may wait for ever
    wait_until(lambda: alone._node is not None and alone._node._machine.is_standby, SOON_S)
    assert alone.shutdown()
    with pytest.raises(RendezvousClosedError):
        call.result(SOON_S)
    assert not b.is_closed()


def test_shutdown_of_one_that_never_called(nodes: Nodes) -> None:
    """As torch's does: who shuts its handler down closes the run, whatever it did before."""
    nodes.handler("1").shutdown()
    assert nodes.handler("1").is_closed()


@pytest.mark.parametrize("ends_process", [False, True])
def test_one_too_many_ends_cleanly_with_the_run(nodes: Nodes, ends_process: bool) -> None:
    a, b = nodes.handler("2"), nodes.handler("2")
    nodes.meet(a, b)
    spare = nodes.handler("2", ends_process=ends_process)
    call = nodes.start(spare.next_rendezvous)
    wait_until(lambda: spare._node is not None and spare._node._machine.is_standby, SOON_S)
    a.shutdown()
    kind = SystemExit if ends_process else RendezvousGracefulExitError
    with pytest.raises(kind) as caught:
        call.result(SOON_S)
    if ends_process:
        assert caught.value.args == (0,)
    assert spare.shutdown()


def test_one_too_many_of_a_run_that_failed_is_told_so(nodes: Nodes) -> None:
    a, b = nodes.handler("2"), nodes.handler("2")
    nodes.meet(a, b)
    spare = nodes.handler("2", ends_process=True)
    call = nodes.start(spare.next_rendezvous)
    wait_until(lambda: spare._node is not None and spare._node._machine.is_standby, SOON_S)
    try:
        raise ValueError("bad batch")
    except ValueError:
        a.shutdown()
    with pytest.raises(RendezvousClosedError, match="bad batch"):
        call.result(SOON_S)


@pytest.mark.parametrize("ends", ["failed", "stopped", "too few"])
def test_a_run_that_did_not_succeed_calls_every_agent_to_rendezvous_again(
    nodes: Nodes, ends: str
) -> None:
    """So that torchrun's agent stops its workers, which may hang, and is told the cause."""
    a, b, c = (nodes.handler("3") for _ in range(3))
    infos = nodes.meet(a, b, c)
    match ends:
        case "failed":
            says = r"failed: ValueError: bad batch"
            with contextlib.suppress(ValueError):
                try:
                    raise ValueError("bad batch")
                finally:
                    a.shutdown()
        case "stopped":
            says = "stopped: enough"
            assert a._portal is not None
            assert a._node is not None
            a._portal.run(a._node.close_run(Outcome.STOPPED, "enough", SOON_S))
        case _:
            says = "not enough nodes"
            done = nodes.start(exit_barrier, infos[0].store, 3, 300)
            wait_until(lambda: a._is_done, SOON_S)
            nodes.vanish(c)
            done.result(SOON_S)
    wait_until(lambda: b._node is not None and b._node.closed is not None, SOON_S)
    assert b.num_nodes_waiting() > 0
    with pytest.raises(RendezvousClosedError, match=says):
        b.next_rendezvous()
    assert b.shutdown()


def test_who_is_done_ends_with_the_cause_where_the_run_ends_badly(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's agent is in its exit barrier then, which swallows every Exception."""
    torch_store = pytest.importorskip("torch.distributed").Store
    monkeypatch.setattr(_torch_bridge, "loaded", lambda: True)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    a, b, c = (nodes.handler("3", ends_process=True, quiet=True) for _ in range(3))
    infos = nodes.meet(a, b, c)
    assert all(isinstance(info.store, torch_store) for info in infos)
    done = nodes.start(exit_barrier, infos[0].store, 3, 300)
    wait_until(lambda: a._is_done, SOON_S)
    with contextlib.suppress(ValueError):
        try:
            raise ValueError("bad batch")
        finally:
            b.shutdown()
    with pytest.raises(SystemExit, match="ValueError: bad batch") as caught:
        done.result(SOON_S)
    assert caught.value.code not in (0, None)
    # One that finishes only now is told at its first step, and Rallypoint's thread is alive.
    wait_until(lambda: c._node is not None and c._node.closed is not None, SOON_S)
    with pytest.raises(SystemExit, match="ValueError: bad batch"):
        exit_barrier(infos[2].store, 3, 300)
    assert a.num_nodes_waiting() == 0
    assert a.shutdown()
    assert c.shutdown()


def test_who_is_done_waits_for_the_verdict_on_those_who_are_left(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss comes first, and that too few are left comes after it."""
    pytest.importorskip("torch.distributed")
    monkeypatch.setattr(_torch_bridge, "loaded", lambda: True)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    a, b = (nodes.handler("2", ends_process=True, quiet=True) for _ in range(2))
    infos = nodes.meet(a, b)
    done = nodes.start(exit_barrier, infos[0].store, 2, 300)
    wait_until(lambda: a._is_done, SOON_S)
    nodes.vanish(b)
    with pytest.raises(SystemExit, match="not enough nodes"):
        done.result(SOON_S)


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
    """Also where this node carries the coordinator, and the others have not said goodbye yet."""
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


def test_a_host_that_is_done_shuts_down_in_time_and_goes_on_coordinating(tmp_path: Path) -> None:
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


# -- time, and who does not answer ---------------------------------------------------------------


def test_no_round_within_the_join_timeout(nodes: Nodes) -> None:
    a, b = nodes.handler("2", join_timeout=3), nodes.handler("2")
    assert not a.is_closed()  # let in, however long that takes
    with pytest.raises(RendezvousTimeoutError, match="1 of at least 2") as caught:
        a.next_rendezvous()
    assert isinstance(caught.value.__cause__, errors.JoinTimeoutError)
    assert not b.is_closed()
    assert [info.world_size for info in nodes.meet(a, b)] == [2, 2]


def test_the_last_call_has_torch_s_name_too(nodes: Nodes) -> None:
    config: dict[str, Any] = {"last_call": None, "last_call_timeout": "0.2"}
    a, b = nodes.handler("2:9", **config), nodes.handler("2:9", **config)
    assert [info.world_size for info in nodes.meet(a, b)] == [2, 2]


def test_nobody_is_there(tmp_path: Path) -> None:
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


def test_something_else_answers_there(tmp_path: Path) -> None:
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
def test_a_frozen_coordinator_blocks_no_call_past_its_deadline(
    nodes_alone: Nodes, call: Callable[[NodeRendezvousHandler], None]
) -> None:
    limits: dict[str, Any] = {"join_timeout": 2, "close_timeout": 2, "goodbye_timeout": 0.5}
    a, b = (nodes_alone.handler("2", read_timeout=2, **limits) for _ in range(2))
    assert [a.is_closed(), b.is_closed()] == [False, False]  # let in, so that they meet at once
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


def test_two_nodes_of_one_name(nodes: Nodes) -> None:
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
def test_a_value_that_cannot_be_read_names_its_option(option: str, value: object) -> None:
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


def test_more_than_one_node_needs_a_place_to_meet() -> None:
    with pytest.raises(ValueError, match="needs an endpoint"):
        _made(endpoint="")
    _made(endpoint="", nnodes=1)


def test_one_node_may_have_any_port() -> None:
    """torch documents `--rdzv-endpoint=localhost:0` for a single node."""
    handler = _made(endpoint="localhost:0", nnodes=1)
    assert isinstance(handler, NodeRendezvousHandler)
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size) == (0, 1)
    handler.shutdown()
    with pytest.raises(ValueError, match="'0' is not a port"):
        _made(endpoint="localhost:0", nnodes=2)


def test_one_node_needs_nobody(tmp_path: Path) -> None:
    with nodes_of(tmp_path, serves=False) as nodes:
        nodes.endpoint = ""
        alone = nodes.handler("1")
        info = alone.next_rendezvous()
        assert (info.rank, info.world_size) == (0, 1)
        assert alone.next_rendezvous().world_size == 1
        assert alone.shutdown()


def test_errors_are_only_ours_where_torch_is_not_imported(nodes: Nodes) -> None:
    a = nodes.handler("2", join_timeout=0.1)
    assert not a.is_closed()  # let in, however long that takes
    with pytest.raises(RendezvousTimeoutError) as caught:
        a.next_rendezvous()
    assert type(caught.value) is RendezvousTimeoutError
    assert sys.modules.get("torch.distributed.elastic.rendezvous.api") is None
