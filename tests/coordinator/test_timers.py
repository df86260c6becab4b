"""Deadlines of all runs in one heap."""

from __future__ import annotations

import pytest

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.timers import Timers
from rallypoint.core.store import Wait
from rallypoint.core.values import RunSettings
from rallypoint.wire import messages as wire
from tests.network import Network


def test_timers_fire_in_order_and_never_early() -> None:
    timers, called = Timers(), list[str]()
    for due_s, name in ((3.0, "c"), (1.0, "a"), (2.0, "b"), (1.0, "a2")):
        timers.call_at(due_s, lambda name=name: called.append(name))  # type: ignore[misc]
    timers.run_due(2.0)
    assert called == ["a", "a2", "b"]
    assert timers.next_due_s() == 3.0


def test_a_timer_set_by_a_timer_fires_in_the_next_turn() -> None:
    timers, called = Timers(), list[int]()

    def again() -> None:
        called.append(1)
        timers.call_at(0.0, again)

    timers.call_at(0.0, again)
    timers.run_due(1.0)
    assert called == [1]
    timers.run_due(1.0)
    assert called == [1, 1]


def test_a_timer_that_raises_does_not_stop_the_others() -> None:
    timers, called = Timers(), list[str]()

    def fails() -> None:
        raise AssertionError("a broken invariant")

    timers.call_at(1.0, fails)
    timers.call_at(1.0, lambda: called.append("next"))
    with pytest.raises(AssertionError):
        timers.run_due(1.0)
    timers.run_due(1.0)
    assert called == ["next"]


def test_a_cancelled_timer_never_fires_and_is_removed() -> None:
    timers, called = Timers(), list[int]()
    kept = timers.call_at(5.0, lambda: called.append(5))
    for number in range(10_000):
        timer = timers.call_at(4.0 - number / 10_000, lambda: called.append(0))
        timer.cancel()
        timer.cancel()
        assert len(timers._heap) <= 2 * 64 + 2
    assert (len(timers), timers.next_due_s()) == (1, 5.0)
    timers.run_due(5.0)
    kept.cancel()  # it was called, so there is nothing to cancel
    assert called == [5]
    assert (len(timers), timers.next_due_s()) == (0, None)


def test_a_timer_can_cancel_another_that_is_due() -> None:
    timers, called = Timers(), list[str]()
    other = timers.call_at(2.0, lambda: called.append("other"))
    timers.call_at(1.0, other.cancel)
    timers.run_due(3.0)
    assert called == []
    assert len(timers) == 0


def test_cancelled_waits_leave_no_timer() -> None:
    """Each ends sooner than the one before it, so that each had a timer of its own."""
    network = Network()
    node = network.node("a")
    network.settle()
    node.ready()
    network.until(lambda: bool(node.rounds))
    session = next(iter(network.coordinator.sessions.values()))
    member = session.node
    assert member is not None
    before = len(network.coordinator._timers)
    for number in range(1, 501):
        call = wire.StoreCall(
            network.run.stamp, number, Wait(("never",)), timeout_s=10_000.0 - number
        )
        network.run.store.call(session, member, call)
        assert len(network.coordinator._timers) == before + 1
        network.run.store.cancel(member, number)
        assert len(network.coordinator._timers) == before


def test_short_waits_beside_a_long_one_have_one_timer_and_end_in_time() -> None:
    network = Network()
    node = network.node("a")
    network.settle()
    node.ready()
    network.until(lambda: bool(node.rounds))
    before = len(network.coordinator._timers)
    long = node.call(Wait(("never",)), timeout_s=30.0)
    for _ in range(50):
        short = node.call(Wait(("never",)), timeout_s=0.2)
        network.until(lambda short=short: short in node.answers, limit_s=1.0)  # type: ignore[misc]
        assert len(network.coordinator._timers) <= before + 1
    assert long not in node.answers
    network.until(lambda: long in node.answers, limit_s=30.5)


YEAR_S = 365 * 86_400.0


def test_a_timer_set_again_replaces_the_earlier_one() -> None:
    """The settings are a node's: each time that it resumes would leave one behind for a year."""
    network = Network()
    settings = RunSettings(max_restarts=None, reconnect_grace_s=YEAR_S)
    node = network.node("a", settings)
    network.settle()
    node.ready()
    network.until(lambda: bool(node.rounds))
    counts = []
    for _ in range(6):
        node.cut()
        network.advance(0.5)
        assert node.machine.is_attached
        counts.append(len(network.coordinator._timers))
    assert counts == counts[:1] * len(counts)


def test_former_members_leave_no_timers() -> None:
    network = Network()
    settings = RunSettings(max_nodes=9, max_restarts=None, reconnect_grace_s=YEAR_S, mass_min=10)
    network.node("stays", settings)
    network.settle()
    for number in range(200):
        node = network.node(f"n{number}", settings)
        network.settle()
        node.cut()  # which gives it a year to resume
        network.advance(0.2)
        node.act(node.machine.goodbye("done"))
        network.settle()
    assert len(network.run.membership.roster) == 1
    assert len(network.coordinator._timers) < 100


def test_a_forgotten_run_leaves_no_timers() -> None:
    config = CoordinatorConfig(empty_run_keep_s=5.0)
    network = Network(config)
    settings = RunSettings(
        min_nodes=1, max_nodes=2, max_restarts=None, last_call_s=YEAR_S, reconnect_grace_s=0.0
    )
    node = network.node("a", settings)
    network.settle()
    node.ready()
    network.settle()
    assert len(network.coordinator._timers) > 0
    run = network.run
    node.act(node.machine.goodbye("done"))
    network.advance(20.0)
    assert run.run_id not in network.coordinator.runs
    assert len(network.coordinator._timers) == 0
