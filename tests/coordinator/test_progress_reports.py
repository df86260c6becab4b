"""Many nodes report progress: what it costs the coordinator; and what follows if none advances."""

from __future__ import annotations

import pytest

from rallypoint.core import events as on
from rallypoint.core.membership import Membership
from rallypoint.core.progress import ASK_S
from rallypoint.core.values import RunSettings
from tests.network import Network

NODES = 40
TIMEOUT_S = 20.0
SETTINGS = RunSettings(min_nodes=NODES, max_nodes=NODES, max_restarts=None)
HEARTBEAT_S = 2.0


def in_round() -> Network:
    network = Network()
    for index in range(NODES):
        network.node(f"n{index:02}", SETTINGS).machine.progress.timeout_s = TIMEOUT_S
    network.settle()
    for node in network.nodes.values():
        node.ready()
    network.until(lambda: all(node.rounds for node in network.nodes.values()))
    return network


def advance(network: Network, seconds: int, step: int | None) -> None:
    for second in range(seconds):
        for node in network.nodes.values():
            if step is not None:
                node.machine.progress.advanced(network.now_s, step + second)
        network.advance(1.0)


def test_reports_of_progress_are_no_messages_and_nearly_no_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[on.Event] = []
    original = Membership.step

    def step(self: Membership, event: on.Event, now_s: float) -> object:
        seen.append(event)
        return original(self, event, now_s)

    monkeypatch.setattr(Membership, "step", step)
    network = in_round()
    before = network.messages
    advance(network, 30, None)
    quiet = network.messages - before
    before = network.messages
    advance(network, 30, 1)
    # A heartbeat and its answer may be on this or that side of a window's end.
    assert abs(network.messages - before - quiet) <= 2 * NODES
    reports = [event for event in seen if isinstance(event, on.NodeProgressed)]
    assert len(reports) == 1
    progress = network.run.membership.progress
    assert len(progress.nodes) == NODES
    assert progress.step is not None
    assert progress.step >= 28


def test_a_round_in_which_no_node_advances_ends_in_time() -> None:
    network = in_round()
    advance(network, 5, 1)
    last_s = network.now_s - 1.0
    nodes = list(network.nodes.values())
    network.until(lambda: bool(nodes[0].changes))
    assert TIMEOUT_S <= network.now_s - last_s <= TIMEOUT_S + ASK_S + HEARTBEAT_S
    network.settle()
    for node in nodes:
        failure = node.changes[0].failure
        assert failure is not None
        assert failure.is_hang
        assert "no answer from n00" in failure.message
