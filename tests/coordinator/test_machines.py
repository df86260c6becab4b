"""A coordinator and node machines back to back: connections break, and the test has the clock."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from rallypoint.client import actions as act
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import Add, Barrier, Get, StoreValue
from rallypoint.core.values import (
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    FailureKind,
    Outcome,
    RunSettings,
)
from rallypoint.wire import messages as wire
from tests.coordinator.first_round import FAILURE, TWO, UP_TO_FOUR, met
from tests.network import Network, Node, stamp


def test_nodes_meet_break_and_meet_again():
    network = Network()
    a, b = met(network)
    assert [a.seat, b.seat] == [(1, 0, 2), (1, 1, 2)]
    assert a.rounds[0][0] == b.rounds[0][0]  # R2
    a.ready()
    network.until(lambda: bool(b.changes))
    assert b.changes[0].kind is ChangeKind.READY_AGAIN
    b.ready()
    network.until(lambda: len(b.rounds) == 2)
    assert [a.seat, b.seat] == [(2, 0, 2), (2, 1, 2)]


# -- connections that break ------------------------------------------------------------------------


class Program:
    """A node's own actions: two rounds with an add, a barrier and a failure between them."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.sums: dict[int, object] = {}
        self._waits_for: dict[int, str] = {}
        node.on_action = self._on
        node.ready()

    def _on(self, action: act.Action) -> None:
        match action:
            case act.RoundFormed():
                self._waits_for[self.node.call(Add("sum", 1))] = "sum"
            case act.CallAnswered(request_id=request_id, result=StoreValue(value)):
                self._answered(self._waits_for.pop(request_id), value)
            case act.RoundEnded(change=change) if change.confirmed and self.node.closed is None:
                self.node.ready()
            case act.RunEnded():
                self.node.act(self.node.machine.goodbye("done"))

    def _answered(self, what: str, value: object) -> None:
        number, rank, _ = self.node.seat
        if what == "sum":
            self.sums[number] = value
            self._waits_for[self.node.call(Barrier("all", rank))] = "barrier"
        elif rank == 0:
            if number == 1:
                self.node.act(self.node.machine.failed(FAILURE))
            else:
                self.node.act(self.node.machine.close(Outcome.SUCCEEDED, "trained"))


class Ended(NamedTuple):
    """What everybody ended with."""

    sums: dict[int, list[object]]
    rounds: list[list[int]]
    seats: list[tuple[int, int, int]]
    closed: list[CloseRecord | None]
    causes: list[list[tuple[ChangeKind, int]]]


def outcome_of_two_rounds(cut_after: int = 0, side: str = "both") -> tuple[Ended, int]:
    """What everybody ended with, and how many messages it took."""
    network = Network()
    programs = [Program(network.node(name, TWO)) for name in ("a", "b")]

    def on_count(count: int, link: object) -> None:
        if count == cut_after:
            for node in network.nodes.values():
                if node.link is not None and (node.link is link or side == "both"):
                    network.later(node.link.cut)

    network.on_count = on_count
    network.until(lambda: all(program.node.closed for program in programs))
    network.advance(5.0)
    assert not network.run.attached_count
    assert not any(program.node.refused for program in programs)
    nodes = [program.node for program in programs]
    ended = Ended(
        {number: sorted(p.sums[number] for p in programs) for number in (1, 2)},  # type: ignore[type-var]
        [[head.number for head, _ in node.rounds] for node in nodes],
        [node.seat for node in nodes],
        [node.closed for node in nodes],
        [sorted((c.kind, c.round) for c in node.changes if c.confirmed) for node in nodes],
    )
    return ended, network.messages


UNDISTURBED, MESSAGES = outcome_of_two_rounds()


def test_an_undisturbed_run_ends_as_planned():
    assert UNDISTURBED.sums == {1: [1, 2], 2: [1, 2]}
    assert UNDISTURBED.rounds == [[1, 2], [1, 2]]
    assert [close and close.reason for close in UNDISTURBED.closed] == ["trained", "trained"]
    assert all((ChangeKind.WORKER_FAILED, 1) in each for each in UNDISTURBED.causes)
    assert 30 < MESSAGES < 100


@pytest.mark.parametrize("side", ["one", "both"])
@pytest.mark.parametrize("cut_after", range(1, MESSAGES + 1))
def test_a_connection_lost_at_any_message_changes_nothing(cut_after: int, side: str):
    assert outcome_of_two_rounds(cut_after, side)[0] == UNDISTURBED


def test_a_lost_answer_is_sent_again_and_the_add_counts_once():
    network = Network()
    a, b = met(network)
    a.is_deaf = True
    request = a.call(Add("n", 1))
    network.settle()
    a.is_deaf = False
    a.cut()
    network.until(lambda: request in a.answers)
    other = b.call(Add("n", 1))
    network.settle()
    assert (a.answers[request], b.answers[other]) == (StoreValue(1), StoreValue(2))


def test_short_waits_beside_a_long_one_leave_no_timers():
    network = Network()
    a, _ = met(network)
    a.call(Get("long"), timeout_s=3_600.0)
    for _ in range(20):
        a.call(Get("short"), timeout_s=0.01)
        network.advance(0.02)
    late = [due_s for due_s, _, _ in network.coordinator._timers._heap if due_s > 3_000.0]
    assert len(late) == 1


def test_repeated_requests_are_applied_once():
    network = Network()
    a, _ = met(network)
    request = a.call(Add("n", 1))
    assert a.link is not None
    a.link.up.extend(list(a.link.up) * 3)
    network.settle()
    again = a.call(Add("n", 1))
    network.settle()
    assert (a.answers[request], a.answers[again]) == (StoreValue(1), StoreValue(2))


def test_every_message_of_a_node_may_come_twice():
    network = Network()
    a, b = met(network)
    for say in (
        lambda: a.act(a.machine.failed(FAILURE)),
        lambda: a.ready(),
        lambda: b.ready(),
    ):
        say()
        for node in (a, b):
            assert node.link is not None
            node.link.up.extend(list(node.link.up))
        network.advance(2.0)
    assert [a.seat[0], b.seat[0]] == [2, 2]
    assert network.run.membership.restart_count == 1
    a.act(a.machine.done())
    b.act(b.machine.done())
    for node in (a, b):
        assert node.link is not None
        node.link.up.extend(list(node.link.up))
    network.until(lambda: a.closed is not None)
    assert a.closed is not None
    assert a.closed.outcome is Outcome.SUCCEEDED


def test_a_verdict_made_while_disconnected_is_sent_after_the_resume():
    network = Network()
    a, b = met(network, settings=RunSettings(min_nodes=2, max_nodes=2, reconnect_grace_s=5.0))
    b.act(b.machine.failed(Failure(FailureKind.COMMUNICATION, "reset")))
    network.settle()
    assert [change.confirmed for change in a.changes] == [False]
    a.reconnects = False
    a.cut()
    network.advance(2.0)
    assert network.run.membership.case is None or network.run.membership.case.closed
    a.connect()
    network.settle()
    assert a.changes[-1].confirmed or a.closed is not None


def test_a_round_that_ended_while_disconnected_ends_for_the_node_too():
    """It is lost, the others go on, and it comes back to a later round than its own."""
    network = Network()
    a, b, c = met(network, 3, UP_TO_FOUR)
    c.reconnects = False
    c.cut()
    network.until(lambda: bool(a.changes and b.changes), 5.0)
    assert a.changes[-1].kind is ChangeKind.NODE_LOST
    for _ in range(2):
        a.ready()
        b.ready()
        network.advance(3.0)
    assert a.seat[0] == 3
    c.connect()
    network.settle()
    assert [change.round for change in c.changes] == [1]
    c.ready()
    network.until(lambda: bool(a.changes[-1].kind is ChangeKind.NODES_JOINED), 10.0)


def test_r7_a_node_that_never_got_its_round_is_ready_for_the_next():
    """The round is formed with it, and broken by another, while its connection is down."""
    network = Network()
    settings = RunSettings(min_nodes=2, max_nodes=3, max_restarts=None)
    nodes = [network.node(name, settings) for name in "abc"]
    a, b, c = nodes
    network.settle()
    for node in nodes:
        node.ready()
    a.is_deaf = True
    network.until(lambda: bool(b.rounds and c.rounds))
    assert not a.rounds
    b.act(b.machine.failed(Failure(FailureKind.COMMUNICATION, "Connection reset by peer")))
    network.settle()
    a.cut()
    a.is_deaf = False
    b.ready()
    c.ready()
    network.until(lambda: all(node.rounds and node.seat[0] == 2 for node in nodes), 5.0)
    assert [node.seat for node in nodes] == [(2, 0, 3), (2, 1, 3), (2, 2, 3)]


# -- stamps ----------------------------------------------------------------------------------------


def test_r5_messages_older_than_those_seen_change_nothing():
    network = Network()
    a, _ = met(network)
    head, seat = a.rounds[0]
    before = a.machine.stamp
    close = network.run.membership.close
    assert close is None
    broken = Change(ChangeKind.NODE_LOST, 1)
    for old in (stamp(0), stamp(7, term=0)):
        assert a.machine.received(wire.Broken(old, broken), 1.0) == []
        assert a.machine.received(wire.Formed(old, head, seat), 1.0) == []
    assert (a.machine.stamp, a.machine.ended) == (before, None)
    assert a.machine.received(wire.Broken(stamp(1), broken), 1.0) == [act.RoundEnded(broken)]


def test_a_refusal_before_the_run_is_looked_up_counts():
    network = Network(CoordinatorConfig())
    a, _ = met(network)
    network.coordinator.config = CoordinatorConfig(only_run="another")
    a.cut()
    network.until(lambda: a.refused is not None, 2.0)
    assert a.refused is not None
    assert a.refused.code is RefusalCode.OTHER_RUN


def test_a_limit_is_not_final_for_a_node_that_was_in_the_run():
    network = Network(CoordinatorConfig(sessions_max=3))
    a, _ = met(network)
    network.coordinator.config = CoordinatorConfig(sessions_max=0)
    a.cut()
    network.advance(2.0)
    assert a.refused is None
    network.coordinator.config = CoordinatorConfig(sessions_max=3)
    network.until(lambda: a.machine.is_attached, 10.0)
