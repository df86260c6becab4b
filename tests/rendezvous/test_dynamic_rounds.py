"""Rounds over a user's own backend: good ones, ones with flaws, ones that fail. No torch here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rallypoint.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousStateError,
    RendezvousTimeoutError,
)
from rallypoint.rendezvous._node_handler import NodeRendezvousHandler
from tests.rendezvous.backends import (
    WITHIN_S,
    Bomb,
    Group,
    KeepsNothing,
    LosesWrites,
    SaysNothing,
    Troubled,
    UsersBackend,
    addresses,
    bomb,
    group_over,
    hanging,
    raises,
    takes_at_most,
)
from tests.rendezvous.nodes import without_torch
from tests.waiting import wait_until

pytestmark = pytest.mark.sockets

SOON_S = 10.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_torch(monkeypatch)
    monkeypatch.setenv("RALLYPOINT_SCALE_UP_DELAY", "0")


@pytest.fixture
def group() -> Iterator[Group]:
    with group_over() as group:
        yield group


# -- rounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UsersBackend, SaysNothing, LosesWrites])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_join_and_join_again(kind: type[UsersBackend], size: int) -> None:
    with group_over(kind()) as group:
        handlers = [group.handler(size, size) for _ in range(size)]
        first, second = group.meet(*handlers), group.meet(*handlers)
    for infos in (first, second):
        assert sorted(info.rank for info in infos) == list(range(size))
        assert {info.world_size for info in infos} == {size}
        assert len(addresses(infos)) == 1
    assert addresses(first) != addresses(second)
    # A survivor keeps its rank.
    assert [info.rank for info in first] == [info.rank for info in second]


def test_a_round_makes_its_own_store_by_default(group: Group) -> None:
    handlers = [group.handler(), group.handler()]
    first = group.meet(*handlers)
    first[0].store.set("key", "value")
    assert first[1].store.get("key") == b"value"
    second = group.meet(*handlers)
    assert not second[0].store.check(["key"])


def test_a_round_of_a_callers_store_has_a_prefix_over_it() -> None:
    kept: dict[str, Any] = {}

    class Store:
        def set(self, key: str, value: Any) -> None:
            kept[key] = value

    with group_over(store=Store()) as group:
        a = group.handler(1, 1)
        group.meet(a)[0].store.set("key", "one")
        group.meet(a)[0].store.set("key", "two")
    parts = [key.split("/") for key in kept]
    assert [part[0] for part in parts] == ["torch.rendezvous.run.1", "torch.rendezvous.run.2"]
    assert {part[-1] for part in parts} == {"key"}
    assert list(kept.values()) == ["one", "two"]


def test_a_run_id_that_is_used_again_meets_no_old_keys_in_a_callers_store() -> None:
    class Store(dict[str, int]):
        def add(self, key: str, amount: int) -> int:
            self[key] = self.get(key, 0) + amount
            return self[key]

    store = Store()
    for _ in range(2):
        with group_over(store=store) as group:
            infos = group.meet(group.handler(), group.handler())
            assert [info.store.add("count", 1) for info in infos] == [1, 2]


def test_the_local_address_is_the_rounds(group: Group) -> None:
    infos = group.meet(group.handler(local_addr="127.0.0.2"), group.handler(local_addr="127.0.0.2"))
    assert {host for host, _ in addresses(infos)} == {"127.0.0.2"}


def test_a_newcomer_is_counted_and_admitted(group: Group) -> None:
    a, b, c = (group.handler(2, 3) for _ in range(3))
    group.meet(a, b)
    assert a.num_nodes_waiting() == 0
    call = group.start(c.next_rendezvous)
    wait_until(lambda: a.num_nodes_waiting() == 1 and b.num_nodes_waiting() == 1, SOON_S)
    infos = [*group.meet(a, b), call.result(WITHIN_S)]
    assert sorted(info.rank for info in infos) == [0, 1, 2]
    assert a.num_nodes_waiting() == 0


def test_the_minimum_is_enough_once_the_last_call_is_over(group: Group) -> None:
    infos = group.meet(group.handler(2, 4, last_call=0.2), group.handler(2, 4, last_call=0.2))
    assert {info.world_size for info in infos} == {2}


def test_a_surplus_node_is_on_standby_and_replaces_a_lost_one(group: Group) -> None:
    a, b = group.handler(), group.handler()
    group.meet(a, b)
    spare = group.handler()
    call = group.start(spare.next_rendezvous)
    assert (a.num_nodes_waiting(), b.num_nodes_waiting()) == (0, 0)
    group.vanish(b)
    wait_until(lambda: a.num_nodes_waiting() > 0, SOON_S)
    infos = [*group.meet(a), call.result(WITHIN_S)]
    assert sorted(info.rank for info in infos) == [0, 1]
    assert len(addresses(infos)) == 1


def test_a_surplus_node_ends_with_the_run(group: Group) -> None:
    a, b = group.handler(), group.handler()
    group.meet(a, b)
    call = group.start(group.handler().next_rendezvous)
    assert a.shutdown()
    with pytest.raises((RendezvousGracefulExitError, RendezvousClosedError)):
        call.result(WITHIN_S)


# -- the end ---------------------------------------------------------------------------------------


def test_torchs_tests_end_a_handler_by_stopping_its_heartbeats(group: Group) -> None:
    a, b, c = (group.handler(2, 3, last_call=0.2) for _ in range(3))
    group.meet(a, b)
    b._stop_heartbeats()
    b._stop_heartbeats()
    wait_until(lambda: a.num_nodes_waiting() > 0, SOON_S)
    assert not a.is_closed()
    assert {info.world_size for info in group.meet(a, c)} == {2}


def test_shutdown_closes_for_all(group: Group) -> None:
    a, b = group.handler(), group.handler()
    group.meet(a, b)
    assert not b.is_closed()
    assert a.shutdown()
    wait_until(b.is_closed, SOON_S)
    assert b.num_nodes_waiting() == 0
    with pytest.raises(RendezvousClosedError):
        b.next_rendezvous()
    assert a.shutdown()
    assert a.is_closed()


def test_set_closed_closes_for_later_nodes_too(group: Group) -> None:
    a = group.handler()
    a.set_closed()
    a.set_closed()
    assert a.is_closed()
    late = group.handler()
    assert late.is_closed()
    with pytest.raises(RendezvousClosedError):
        group.handler().next_rendezvous()


def test_waiting_nodes_learn_that_the_run_is_closed(group: Group) -> None:
    a, b = group.handler(3, 3), group.handler(3, 3)
    call = group.start(a.next_rendezvous)
    b.set_closed()
    with pytest.raises((RendezvousClosedError, RendezvousGracefulExitError)):
        call.result(WITHIN_S)


def test_a_round_that_is_not_formed_in_time_says_what_is_missing(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the whole time, though finding the coordinator has taken a part of it."""
    opened = NodeRendezvousHandler._opened

    def late(handler: NodeRendezvousHandler, *limits_s: float) -> Any:
        node = opened(handler, *limits_s)
        time.sleep(1.0)  # the part that it takes
        return node

    monkeypatch.setattr(NodeRendezvousHandler, "_opened", late)
    with takes_at_most(6), pytest.raises(RendezvousTimeoutError, match="1 of 3 nodes") as caught:
        group.handler(3, 3, join=6).next_rendezvous()
    assert "within 6 s" in str(caught.value)


# -- what a backend may do -------------------------------------------------------------------------


def test_one_node_alone_needs_no_durable_backend() -> None:
    with group_over(KeepsNothing()) as group:
        handler = group.handler(1, 1, local_addr="127.0.0.2")
        first, second = group.meet(handler), group.meet(handler)
        assert (first[0].rank, first[0].world_size) == (0, 1)
        assert {host for host, _ in addresses(first)} == {"127.0.0.2"}
        assert addresses(first) != addresses(second)
        assert not handler.is_closed()
        assert handler.shutdown()


def test_several_nodes_on_a_backend_that_keeps_nothing_get_an_error() -> None:
    with group_over(KeepsNothing()) as group:
        handler = group.handler(2, 2, join=2)
        with takes_at_most(2 + 2), pytest.raises(RendezvousTimeoutError, match="users"):
            handler.next_rendezvous()


def test_a_backend_that_raises_is_a_connection_error() -> None:
    backend = Troubled()
    backend.trouble = raises
    with group_over(backend) as group:
        handler = group.handler(join=1, close=1)
        with takes_at_most(1), pytest.raises(RendezvousConnectionError, match="maintenance"):
            handler.next_rendezvous()
        with takes_at_most(1), pytest.raises(RendezvousConnectionError, match="maintenance"):
            handler.is_closed()
        with takes_at_most(1), pytest.raises(RendezvousConnectionError, match="maintenance"):
            handler.set_closed()


def test_a_backend_that_raises_only_at_first_is_awaited() -> None:
    backend = Troubled()
    backend.trouble = raises
    with group_over(backend) as group:
        calls = [group.start(group.handler().next_rendezvous) for _ in range(2)]
        backend.trouble = lambda: None
        assert sorted(call.result(WITHIN_S).rank for call in calls) == [0, 1]


def test_a_backend_that_hangs_delays_no_call_past_its_deadline() -> None:
    backend = Troubled()
    with hanging(backend), group_over(backend) as group:
        handler = group.handler(join=2, close=1)
        with takes_at_most(2), pytest.raises(RendezvousTimeoutError, match=r"within 2 s.*users"):
            handler.next_rendezvous()
        with takes_at_most(2), pytest.raises(RendezvousConnectionError):
            handler.is_closed()
        with takes_at_most(1), pytest.raises(RendezvousTimeoutError, match="not closed within 1 s"):
            handler.set_closed()
        with takes_at_most(1):
            handler.shutdown()


def test_a_backend_that_is_slow_ends_at_the_join_timeout() -> None:
    """It answers each call, and the whole takes longer than a node may wait."""
    backend = Troubled()
    with group_over(backend) as group:
        handler = group.handler(1, 1, join=3, close=2)
        backend.trouble = lambda: time.sleep(2)
        with takes_at_most(3), pytest.raises(RendezvousTimeoutError, match="within 3 s"):
            handler.next_rendezvous()
        with takes_at_most(2):
            handler.shutdown()


def test_a_backend_that_hangs_later_does_not_disturb_a_round() -> None:
    backend = Troubled()
    with group_over(backend) as group:
        a, b = group.handler(close=2), group.handler(close=2)
        group.meet(a, b)
        with hanging(backend):
            assert (a.num_nodes_waiting(), b.num_nodes_waiting()) == (0, 0)
            # The coordinator cannot commit anything, and what needs that ends by its deadline.
            with takes_at_most(2), pytest.raises(RendezvousTimeoutError, match="not closed"):
                a.set_closed()


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\x80\x04N.", bytes(5000)])
def test_garbage_is_a_state_error_and_unchanged(garbage: bytes) -> None:
    backend = UsersBackend()
    backend.state = garbage
    with group_over(backend) as group:
        handler = group.handler()
        with takes_at_most(0), pytest.raises(RendezvousStateError):
            handler.next_rendezvous()
        with takes_at_most(0), pytest.raises(RendezvousStateError):
            handler.is_closed()
    assert backend.state == garbage


def test_nothing_is_ever_unpickled() -> None:
    backend = UsersBackend()
    backend.state = bomb()
    with group_over(backend) as group, pytest.raises(RendezvousStateError):
        group.handler(1, 1, join=5).next_rendezvous()
    assert not Bomb.went_off


def test_later_garbage_is_neither_executed_nor_overwritten() -> None:
    backend = UsersBackend()
    with group_over(backend) as group:
        a, b = group.handler(close=1), group.handler(close=1)
        group.meet(a, b)
        backend.state, backend.count = bomb(), backend.count + 1
        with takes_at_most(5), pytest.raises(RendezvousStateError):
            group.handler(join=5).next_rendezvous()
        assert backend.state == bomb()
    assert not Bomb.went_off


def test_a_second_run_in_one_process_is_separate() -> None:
    with group_over() as one, group_over() as other:
        handlers = [one.handler(), one.handler(), other.handler(), other.handler()]
        infos = one.meet(*handlers)
    assert len(addresses(infos)) == 2
    assert threading.active_count() < 200  # threads of their own are for the backend's calls only
