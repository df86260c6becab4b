"""Silent nodes, silent coordinators, stalls and slow consumers, between two machines."""

from __future__ import annotations

import pytest

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.session import CLOSE_S
from rallypoint.core.store import Add, StoreValue
from rallypoint.core.values import (
    ChangeKind,
    Reachability,
    RunSettings,
)
from rallypoint.wire import messages as wire
from tests.coordinator.first_round import TWO, met
from tests.network import Network, stamp

# -- silence, stalls, slow consumers ---------------------------------------------------------------


def reachability_of(network: Network, name: str) -> Reachability:
    member = network.run.membership.roster.get(name)
    assert member is not None
    return member.reachability


def test_silence_makes_a_node_suspect_and_any_message_clears_it():
    network = Network()
    a, b = met(network)
    b.is_frozen = True
    network.advance(5.5)
    assert (reachability_of(network, "n0"), reachability_of(network, "n1")) == (
        Reachability.CONNECTED,
        Reachability.SILENT,
    )
    assert not a.changes
    b.is_frozen = False
    network.advance(2.0)
    assert reachability_of(network, "n1") is Reachability.CONNECTED


def test_r8_a_node_whose_input_waits_here_is_not_silent(monkeypatch: pytest.MonkeyPatch):
    network = Network()
    _, b = met(network)
    session = network.run.connections.by_name["n1"]
    b.is_frozen = True
    monkeypatch.setattr(type(session.input_turns), "are_due", True)
    network.advance(10.0)
    assert reachability_of(network, "n1") is Reachability.CONNECTED
    monkeypatch.undo()
    network.advance(10.0)
    assert reachability_of(network, "n1") is Reachability.SILENT


def test_a_node_that_stays_silent_is_lost():
    network = Network()
    a, b = met(network)
    b.is_frozen = True
    network.advance(29.0)
    assert not a.changes
    network.advance(3.0)
    assert a.changes[-1].kind is ChangeKind.NODE_LOST
    assert a.changes[-1].nodes == ("n1",)


def test_r8_a_stall_of_the_coordinator_loses_no_node():
    network = Network()
    nodes = met(network, 5)
    for gap_s in (20.0, 100.0, 1_000.0):
        network.jump(gap_s)
        network.advance(3.0)
        assert not any(node.changes for node in nodes)
        assert network.run.membership.phase.value == "active"
        assert all(reachability_of(network, node.name) is Reachability.CONNECTED for node in nodes)


def test_a_node_leaves_a_silent_coordinator():
    network = Network()
    a, _ = met(network)
    a.is_deaf = True
    network.advance(10.0)
    assert a.dropped
    assert "has been silent for" in a.dropped[0]


def test_a_node_leaves_a_coordinator_that_does_not_admit_it():
    network = Network()
    a = network.node("a", TWO)
    a.is_deaf = True
    network.advance(10.0)
    assert a.dropped


def test_a_node_that_was_stalled_does_not_blame_the_coordinator():
    network = Network()
    a, _ = met(network)
    network.jump(60.0)
    network.advance(3.0)
    assert not a.dropped


@pytest.mark.parametrize("suspect_after_s", [0.1, 5.0, 60.0])
def test_heartbeats_keep_the_connection_whatever_the_settings(suspect_after_s: float):
    """One heartbeat each 20 s would look like a coordinator that is silent for 6."""
    network = Network()
    settings = RunSettings(suspect_after_s=suspect_after_s, lost_after_s=max(suspect_after_s, 30))
    (a,) = met(network, 1, settings)
    network.advance(100.0)
    assert not a.dropped
    assert reachability_of(network, "n0") is Reachability.CONNECTED


def test_a_slow_consumer_is_dropped_and_resumes():
    network = Network(CoordinatorConfig(backlog_bytes_max=100_000))
    a, b = met(network)
    a.is_deaf = True
    assert a.link is not None
    slow = a.link
    a.link.up.extend([wire.encode(wire.AskMembers(stamp(1), 9_999))] * 2_000)
    network.advance(CLOSE_S + 0.1)
    assert not slow.is_open
    a.is_deaf = False
    network.until(lambda: a.machine.is_attached, 2.0)
    request = a.call(Add("n", 1))
    network.settle()
    assert a.answers[request] == StoreValue(1)
    assert not b.changes


def test_all_remembered_answers_fit_the_backlog():
    """Else it would be dropped again each time that it resumed. Large ones wait as references."""
    config = CoordinatorConfig()
    limits = config.store_limits
    small = 512
    assert limits.unacknowledged_calls_per_node_max * small < config.backlog_bytes_max
    assert limits.answer_bytes_max < wire.ANSWER_BYTES_MAX


def test_a_connection_that_never_attaches_is_closed():
    network = Network()
    a = network.node("a", TWO)
    assert a.link is not None
    a.link.up.clear()
    a.reconnects = False
    link = a.link
    network.advance(9.0)
    assert link.is_open or a.dropped
    network.advance(2.0)
    assert not link.is_open
    assert not network.coordinator.sessions
