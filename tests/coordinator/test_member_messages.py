"""What a round sends to its members, what it takes from them, and how they say goodbye."""

from __future__ import annotations

from rallypoint.client import actions as act
from rallypoint.client import machine as m
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import Get, Set, StoreFailure
from rallypoint.core.values import (
    ChangeKind,
    Failure,
    FailureKind,
    Outcome,
    Phase,
    RunSettings,
)
from rallypoint.wire import messages as wire
from tests.coordinator.first_round import FAILURE, TWO, met
from tests.network import Network, stamp

# -- what is pushed --------------------------------------------------------------------------------


def pushed_per_round(count: int) -> set[tuple[tuple[str, int], ...]]:
    """The messages to each node, from ready in one round to its rank in the next."""
    network = Network(ledger_id="l" * 16)
    nodes = met(network, count)
    for node in nodes:
        node.act(node.machine.tick(network.now_s))
    network.settle()
    network.traffic.clear()
    nodes[-1].act(nodes[-1].machine.failed(FAILURE))
    network.until(lambda: all(node.changes for node in nodes))
    for node in nodes:
        node.ready()
    network.until(lambda: all(len(node.rounds) == 2 for node in nodes))
    return {
        tuple(each for each in messages if each[0] != "Beat")
        for messages in network.traffic.values()
    }


def test_the_messages_of_a_round_to_a_node_do_not_grow_with_the_nodes():
    small, large = pushed_per_round(2), pushed_per_round(50)
    kinds = {tuple(kind for kind, _ in each) for each in small | large}
    assert kinds == {("Broken", "Probe", "CauseFound", "Formed")}
    sizes = {
        count: [sum(size for _, size in each) for each in found]
        for count, found in ((2, small), (50, large))
    }
    # Ranks and sizes above 127 take a byte or two more, and so do the names n1 and n49.
    assert max(sizes[50]) - min(sizes[2]) <= 12
    assert max(sizes[50]) < 500


def test_the_member_table_is_sent_on_request():
    network = Network()
    a, _ = met(network)
    a.act(a.machine.ask_members()[1])
    a.act(a.machine.ask_waiting()[1])
    network.settle()
    table, waiting = a.told
    assert isinstance(table, act.MembersTold)
    assert [row.name for row in table.members] == ["n0", "n1"]
    assert (table.number, table.digest) == (1, a.rounds[0][0].digest)
    assert waiting == act.WaitingTold(2, None)


def test_the_member_table_is_sent_to_members_only():
    """Not for standbys, and not for the next start of a name. It has no secret of a member."""
    network = Network()
    settings = RunSettings(min_nodes=2, max_nodes=2, scale_up_delay_s=0)
    a, _ = met(network, 2, settings)
    spare = network.node("n2", settings)
    spare.ready()
    a.act(a.machine.done())  # so that its end breaks no round
    a.act(a.machine.goodbye("bye"))
    network.settle()
    again = network.node("n0", settings, incarnation=2)
    network.settle()
    for outside in (spare, again):
        outside.act(outside.machine.ask_members()[1])
        network.settle()
        assert outside.told == [act.MembersTold(1, 1, "", ())]

    b = network.nodes["n1/1"]
    b.act(b.machine.ask_members()[1])
    network.settle()
    [table] = b.told
    assert isinstance(table, act.MembersTold)
    assert [row.name for row in table.members] == ["n0", "n1"]
    assert [(row.incarnation, row.secret_hash) for row in table.members] == [(0, b"")] * 2


def test_messages_after_an_attach_without_the_secret_are_ignored():
    """All in one write, as if it were the member: no part of it is accepted."""
    network = Network()
    a, b = met(network)
    thief = network.node("n0", TWO, secret=b"guessed")
    later = stamp(1)
    assert thief.link is not None
    for message in (
        wire.StoreCall(later, 1, Set("k", b"stolen"), 1.0),
        wire.Failed(later, 1, Failure(FailureKind.EXCEPTION, "forged")),
        wire.Done(later, 1),
        wire.Departing(later, "forged"),
        wire.Goodbye(later, "forged"),
        wire.CloseRun(later, Outcome.STOPPED, "forged"),
    ):
        thief.link.up.append(wire.encode(message))
    network.settle()
    assert thief.refused is not None
    assert thief.refused.code is RefusalCode.NAME_TAKEN
    request = b.call(Get("k"), 0.1)
    network.advance(1.0)
    assert isinstance(b.answers[request], StoreFailure)
    assert network.run.membership.phase is Phase.ACTIVE
    assert (a.changes, b.changes) == ([], [])
    assert a.machine.is_attached


def test_messages_after_a_goodbye_do_not_count_for_the_next_of_its_name():
    network = Network()
    settings = RunSettings(min_nodes=2, max_nodes=2)
    a, _ = met(network, 2, settings)
    session = network.run.connections.by_name["n0"]
    a.reconnects = False
    a.act(a.machine.goodbye("bye"))
    network.settle()
    assert session.node is None


# -- goodbye ---------------------------------------------------------------------------------------


def test_an_unanswered_goodbye_is_repeated_with_what_came_before_it():
    """A3: a coordinator that never heard that the node was done would take it for a departure."""
    network = Network()
    a, _ = met(network)
    a.act(a.machine.done())
    a.machine.disconnected()
    a.act(a.machine.goodbye("its work is done"))
    said = [type(message) for message in a.machine._to_say_again(0.0)]
    assert said == [wire.Done, wire.Goodbye]


def test_a_goodbye_ends_the_round_for_both_sides():
    network = Network()
    a, b = met(network)
    a.act(a.machine.goodbye("enough"))
    network.settle()
    assert [(c.kind, c.nodes) for c in a.changes] == [(ChangeKind.NODE_LEFT, ("n0",))]
    assert [(c.kind, c.detail) for c in b.changes] == [(ChangeKind.NODE_LEFT, "enough")]
    network.advance(3.0)
    assert (a.link, len(network.run.membership.roster)) == (None, 1)


def test_long_or_unprintable_reasons_are_cut_and_cleaned():
    network = Network()
    a, b = met(network)
    a.act(a.machine.goodbye("x" * 10_000 + "\udcff"))
    network.settle()
    assert b.changes[0].detail == "x" * m.TEXT_CHARACTERS_MAX
    assert (a.refused, b.refused) == (None, None)
    b.act(b.machine.close(Outcome.STOPPED, "no \udcff"))
    network.settle()
    assert b.closed is not None
    assert b.closed.reason == "no ?"


def test_a_long_or_unprintable_failure_is_cut_and_cleaned():
    network = Network()
    a, b = met(network)
    long = Failure(FailureKind.EXCEPTION, "é\udcff" * 5_000, last_lines=("\udcff",) * 500)
    a.act(a.machine.failed(long))
    network.settle()
    failure = b.changes[0].failure
    assert failure is not None
    assert len(failure.message) == m.TEXT_CHARACTERS_MAX
    assert failure.last_lines == ("?",) * m.LINES_MAX


def test_the_connection_of_a_lost_node_speaks_for_no_other() -> None:
    """A coordinator in a node resigns if it hears no other node; it hears c all the time."""
    network = Network()
    nodes = [network.node(name, RunSettings(min_nodes=2, max_nodes=3)) for name in "abc"]
    for node in nodes:
        node.ready()
    network.until(lambda: all(node.rounds for node in nodes))
    nodes[1].is_frozen = True
    network.until(lambda: network.run.membership.roster.get("b") is None, limit_s=60.0)
    assert network.run.connections.hears_another_than("a")
