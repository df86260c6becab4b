"""A handler that is a node: rounds, counts of waiting nodes, and how a run ends. No torch here.

What of it needs torch is in test_torch_nodes.py, and with torchrun's agents in tests/torchrun.
"""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from rallypoint import errors
from rallypoint.core.values import Outcome
from rallypoint.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousGracefulExitError,
    _torch_bridge,
)
from rallypoint.rendezvous._stores import ASSIGNED_RANKS, ROLE_INFO
from tests.rendezvous.node_handlers import LATE_S, SOON_S, exit_barrier, told
from tests.rendezvous.nodes import WITHIN_S, Nodes
from tests.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("no_torch")]


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


def test_each_round_reserves_a_new_port_for_rank_0(nodes: Nodes) -> None:
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


def test_a_newcomer_is_counted_and_admitted(nodes: Nodes) -> None:
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


def test_a_loss_is_reported_without_a_failure(nodes: Nodes) -> None:
    """Else torchrun would go on until a collective gives up (pytorch #111646)."""
    a, b, c = (nodes.handler(last_call=WITHIN_S) for _ in range(3))
    nodes.meet(a, b, c)
    nodes.vanish(c)
    told(a)
    told(b)
    assert [info.world_size for info in nodes.meet(a, b)] == [2, 2]


def test_a_second_rendezvous_ends_the_round_for_all(nodes: Nodes) -> None:
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


def test_num_nodes_waiting_sends_no_message(nodes_alone: Nodes) -> None:
    a, b = nodes_alone.handler("2"), nodes_alone.handler("2")
    assert a.num_nodes_waiting() == 0
    nodes_alone.meet(a, b)
    nodes_alone.freeze()
    began_s = time.monotonic()
    assert [a.num_nodes_waiting() for _ in range(1000)] == [0] * 1000
    assert time.monotonic() - began_s < LATE_S


def test_a_round_that_ends_during_rank_assignment_does_not_block_the_agent(nodes: Nodes) -> None:
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


# -- done nodes ----------------------------------------------------------------------------------


def test_a_done_node_looks_healthy_until_the_last_one_is_done(nodes: Nodes) -> None:
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


def test_a_node_that_leaves_the_exit_barrier_does_not_close_the_run(nodes: Nodes) -> None:
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


def test_a_loss_releases_the_exit_barrier(nodes: Nodes) -> None:
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


def test_shutdown_during_an_error_reports_the_error(nodes: Nodes) -> None:
    a, b = nodes.handler("2"), nodes.handler("2")
    nodes.meet(a, b)
    try:
        raise ValueError("bad batch in shard 7")
    except ValueError:
        a.shutdown()
    wait_until(b.is_closed, SOON_S)
    with pytest.raises(RendezvousClosedError, match=r"failed.*ValueError: bad batch in shard 7"):
        b.next_rendezvous()


def test_a_node_that_was_not_admitted_only_leaves(nodes: Nodes) -> None:
    a, b = nodes.handler("2"), nodes.handler("2")
    nodes.meet(a, b)
    other = nodes.handler("1:9")
    with pytest.raises(RendezvousError, match="min_nodes"):
        other.next_rendezvous()
    assert other.shutdown()
    alone = nodes.handler("2", join_timeout=0.2)
    assert not alone.is_closed()  # admitted, however long that takes
    call = nodes.start(alone.next_rendezvous)  # on standby: it may wait for ever
    wait_until(lambda: alone._node is not None and alone._node._machine.is_standby, SOON_S)
    assert alone.shutdown()
    with pytest.raises(RendezvousClosedError):
        call.result(SOON_S)
    assert not b.is_closed()


def test_shutdown_of_an_unused_handler_does_nothing(nodes: Nodes) -> None:
    """As in torch: a shutdown of any handler closes the run."""
    nodes.handler("1").shutdown()
    assert nodes.handler("1").is_closed()


@pytest.mark.parametrize("ends_process", [False, True])
def test_a_surplus_node_ends_cleanly_with_the_run(nodes: Nodes, ends_process: bool) -> None:
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


def test_a_surplus_node_of_a_failed_run_gets_the_failure(nodes: Nodes) -> None:
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
    """So that torchrun's agent stops its workers, which may hang, and gets the cause."""
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


def test_a_done_node_gets_the_cause_if_the_run_fails(
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
    # A node that finishes only now learns it at its first step, and Rallypoint's thread is alive.
    wait_until(lambda: c._node is not None and c._node.closed is not None, SOON_S)
    with pytest.raises(SystemExit, match="ValueError: bad batch"):
        exit_barrier(infos[2].store, 3, 300)
    assert a.num_nodes_waiting() == 0
    assert a.shutdown()
    assert c.shutdown()


def test_a_done_node_waits_for_the_verdict_on_the_others(
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
