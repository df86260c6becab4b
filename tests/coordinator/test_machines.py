"""A coordinator and node machines back to back, over links that break, with a test's clock."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from rallypoint.client import actions as act
from rallypoint.client import machine as m
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.session import CLOSE_S
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import Add, Barrier, Get, Set, StoreFailure, StoreValue
from rallypoint.core.values import (
    Change,
    ChangeKind,
    CloseRecord,
    ConnectionEnd,
    Failure,
    FailureKind,
    Outcome,
    Phase,
    Reachability,
    RunSettings,
)
from rallypoint.wire import messages as wire
from tests.network import RUN, Network, Node, stamp

TWO = RunSettings(min_nodes=2, max_nodes=2, max_restarts=None)
UP_TO_FOUR = RunSettings(min_nodes=2, max_nodes=4, last_call_s=1.0, max_restarts=None)
FAILURE = Failure(FailureKind.EXCEPTION, "ValueError: no", rank=0)


def met(network: Network, count: int = 2, settings: RunSettings | None = None) -> list[Node]:
    """Nodes a, b, c ... in their first round."""
    settings = settings or RunSettings(min_nodes=count, max_nodes=count, max_restarts=None)
    nodes = [network.node(f"n{i}", settings) for i in range(count)]
    for node in nodes:
        node.ready()
    network.until(lambda: all(node.rounds for node in nodes))
    return nodes


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


def test_the_undisturbed_run():
    assert UNDISTURBED.sums == {1: [1, 2], 2: [1, 2]}
    assert UNDISTURBED.rounds == [[1, 2], [1, 2]]
    assert [close and close.reason for close in UNDISTURBED.closed] == ["trained", "trained"]
    assert all((ChangeKind.WORKER_FAILED, 1) in each for each in UNDISTURBED.causes)
    assert 30 < MESSAGES < 100


@pytest.mark.parametrize("side", ["one", "both"])
@pytest.mark.parametrize("cut_after", range(1, MESSAGES + 1))
def test_a_connection_lost_at_any_message_changes_nothing(cut_after: int, side: str):
    assert outcome_of_two_rounds(cut_after, side)[0] == UNDISTURBED


def test_an_answer_that_was_lost_is_given_again_and_the_add_counts_once():
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


def test_requests_that_come_twice_are_applied_once():
    network = Network()
    a, _ = met(network)
    request = a.call(Add("n", 1))
    assert a.link is not None
    a.link.up.extend(list(a.link.up) * 3)
    network.settle()
    again = a.call(Add("n", 1))
    network.settle()
    assert (a.answers[request], a.answers[again]) == (StoreValue(1), StoreValue(2))


def test_everything_a_node_says_may_come_twice():
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


def test_a_verdict_that_was_given_while_the_connection_was_lost_is_told_later():
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


def test_a_round_that_ended_while_a_node_was_away_ends_for_it_too():
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


def test_r7_a_node_that_was_never_told_of_a_round_is_ready_for_the_next():
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


def test_r5_what_is_older_than_what_was_seen_changes_nothing():
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


def test_a_refusal_counts_though_it_was_given_before_the_run_was_looked_at():
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


# -- refusals --------------------------------------------------------------------------------------


def test_conflicting_settings_show_both_values():
    network = Network()
    network.node("a", TWO)
    network.settle()
    b = network.node("b", UP_TO_FOUR)
    network.settle()
    assert b.refused is not None
    assert b.refused.code is RefusalCode.CONFLICT
    shown = {c.name: (c.run_value, c.node_value) for c in b.refused.conflicts}
    assert shown == {"max_nodes": ("2", "4"), "last_call_s": ("30.0", "1.0")}
    assert "max_nodes: the run has 2, this node 4" in b.refused.message


def test_a_newer_start_is_refused_while_the_older_one_answers():
    network = Network()
    a, _ = met(network)
    newer = network.node("n0", TWO, incarnation=2)
    network.until(lambda: newer.refused is not None, 2.0)
    assert newer.refused is not None
    assert newer.refused.code is RefusalCode.NAME_TAKEN
    assert not a.changes


def test_a_newer_start_takes_the_place_of_one_that_does_not_answer():
    network = Network()
    a, b = met(network)
    a.is_deaf = True
    newer = network.node("n0", TWO, incarnation=2)
    newer.ready()
    network.until(lambda: newer.machine.is_attached, 3.0)
    assert b.changes[-1].kind is ChangeKind.NODE_LOST
    a.is_deaf = False
    network.settle()
    assert a.refused is not None
    assert a.refused.code is RefusalCode.SUPERSEDED
    network.advance(3.0)
    assert a.link is None


@pytest.mark.parametrize("has_died", [True, False])
def test_a_newer_start_is_let_in_at_once_only_if_the_older_process_has_ended(has_died: bool):
    network = Network()
    a, b = met(network)
    a.is_deaf, a.reconnects = True, False
    newer = network.node("n0", TWO, incarnation=2)
    network.settle()
    assert not newer.machine.is_attached
    assert a.link is not None
    assert a.link.session is not None
    if has_died:
        a.link.session.connection_lost(ConnectionEnd.PROCESS_ENDED)
    a.cut()
    network.advance(0.1)
    assert newer.machine.is_attached == has_died
    if not has_died:
        network.advance(TWO.reconnect_grace_s - 0.5)
        assert not b.changes
        network.advance(1.0)
        assert newer.machine.is_attached


def test_r4_the_next_incarnation_has_no_seat_in_the_round_of_the_last():
    network = Network()
    settings = RunSettings(min_nodes=2, max_nodes=3, last_call_s=0.1)
    a, b = met(network, 2, settings)
    a.act(a.machine.done())  # so that its end breaks no round
    a.act(a.machine.goodbye("bye"))
    network.settle()
    again = network.node("n0", settings, incarnation=2)
    network.settle()
    forged = wire.StoreCall(stamp(1), 1, Set("k", b"late"), 1.0)
    assert again.link is not None
    again.link.up.append(wire.encode(forged))
    network.settle()
    request = b.call(Get("k"), 0.1)
    network.advance(1.0)
    assert isinstance(b.answers[request], StoreFailure)


def test_a_closed_run_says_why_and_since_when():
    network = Network()
    a, _ = met(network)
    a.act(a.machine.close(Outcome.SUCCEEDED, "trained"))
    network.advance(65.0)
    late = network.node("late", TWO)
    network.settle()
    assert late.refused is not None
    assert late.refused.code is RefusalCode.CLOSED
    assert late.refused.close is not None
    assert late.refused.close.reason == "trained"
    assert "closed 65 s ago: succeeded: trained (by n0)" in late.refused.message


def test_a_run_that_was_closed_while_a_node_was_away_is_closed_for_it_too():
    network = Network()
    a, b = met(network)
    b.reconnects = False
    b.cut()
    a.act(a.machine.close(Outcome.SUCCEEDED, "trained"))
    network.settle()
    b.connect()
    network.settle()
    assert (b.closed, b.refused) == (a.closed, None)
    assert b.changes[-1].kind is ChangeKind.CLOSED


def test_a_run_that_was_lost_with_its_coordinator():
    network = Network()
    a, _ = met(network)
    network.replace_coordinator("another")
    network.until(lambda: a.refused is not None, 2.0)
    assert a.refused is not None
    assert a.refused.code is RefusalCode.RUN_LOST
    fresh = network.node("fresh", TWO)
    network.settle()
    assert fresh.machine.is_attached


def test_a_run_that_was_forgotten_is_lost_to_its_nodes():
    """R5: begun anew under the same ledger, its rounds would look older than those they saw."""
    network = Network(CoordinatorConfig(empty_run_keep_s=1.0))
    a, b = met(network)
    for node in (a, b):
        node.reconnects = False
        node.cut()
    network.until(lambda: RUN not in network.coordinator.runs, 300.0)
    a.connect()
    network.settle()
    assert a.refused is not None
    assert a.refused.code is RefusalCode.RUN_LOST


def test_a_run_that_begins_again_after_it_was_forgotten_has_higher_tokens():
    """R1, R13: the ledger_id is the same."""
    network = Network(CoordinatorConfig(empty_run_keep_s=1.0))
    a, b = met(network)
    before = network.run.membership
    for node in (a, b):
        node.reconnects = False
        node.cut()
    network.until(lambda: RUN not in network.coordinator.runs, 300.0)
    fresh = [network.node(name, TWO, incarnation=7) for name in ("c", "d")]
    for node in fresh:
        node.ready()
    network.settle()
    after = network.run.membership
    assert after.round is not None
    assert before.round is not None
    assert after.round.head.term > before.round.head.term
    assert after.round.head.number > before.round.head.number


def test_a_run_whose_connections_all_broke_is_not_forgotten_while_its_members_may_resume():
    network = Network(CoordinatorConfig(empty_run_keep_s=0.0))
    nodes = met(network)
    network.advance(10.0)  # so that it is older than an empty run may be
    for node in nodes:
        node.reconnects = False
        node.cut()
    network.advance(0.6)  # a few looks, within reconnect_grace
    assert RUN in network.coordinator.runs
    for node in nodes:
        node.connect()
    network.settle()
    assert [node.machine.is_attached for node in nodes] == [True, True]


def test_an_embedded_coordinator_admits_its_own_run_only():
    network = Network(CoordinatorConfig(only_run="another"))
    a = network.node("a", TWO)
    network.settle()
    assert a.refused is not None
    assert a.refused.code is RefusalCode.OTHER_RUN
    assert "rallypoint serve" in a.refused.hint


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (CoordinatorConfig(runs_max=0), RefusalCode.LIMIT),
        (CoordinatorConfig(members_max=0), RefusalCode.LIMIT),
        (CoordinatorConfig(sessions_max=0), RefusalCode.LIMIT),
    ],
)
def test_limits(config: CoordinatorConfig, code: RefusalCode):
    network = Network(config)
    a = network.node("a", TWO)
    network.settle()
    assert a.refused is not None
    assert a.refused.code is code


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "a\0"])
def test_names_that_could_forge_a_log_are_refused(name: str):
    network = Network()
    a = network.node(name, TWO)
    network.settle()
    assert a.refused is not None
    assert a.refused.code is RefusalCode.MALFORMED


# -- silence, stalls, slow consumers ---------------------------------------------------------------


def link_of(network: Network, name: str) -> Reachability:
    member = network.run.membership.roster.get(name)
    assert member is not None
    return member.reachability


def test_silence_makes_a_node_suspect_and_a_word_clears_it():
    network = Network()
    a, b = met(network)
    b.is_frozen = True
    network.advance(5.5)
    assert (link_of(network, "n0"), link_of(network, "n1")) == (
        Reachability.CONNECTED,
        Reachability.SILENT,
    )
    assert not a.changes
    b.is_frozen = False
    network.advance(2.0)
    assert link_of(network, "n1") is Reachability.CONNECTED


def test_who_stays_silent_is_lost_in_the_end():
    network = Network()
    a, b = met(network)
    b.is_frozen = True
    network.advance(29.0)
    assert not a.changes
    network.advance(3.0)
    assert a.changes[-1].kind is ChangeKind.NODE_LOST
    assert a.changes[-1].nodes == ("n1",)


def test_r8_nobody_is_lost_because_the_coordinator_stood_still():
    network = Network()
    nodes = met(network, 5)
    for gap_s in (20.0, 100.0, 1_000.0):
        network.jump(gap_s)
        network.advance(3.0)
        assert not any(node.changes for node in nodes)
        assert network.run.membership.phase.value == "active"
        assert all(link_of(network, node.name) is Reachability.CONNECTED for node in nodes)


def test_a_node_gives_up_a_coordinator_that_says_nothing():
    network = Network()
    a, _ = met(network)
    a.is_deaf = True
    network.advance(10.0)
    assert a.dropped
    assert "has been silent for" in a.dropped[0]


def test_a_node_gives_up_a_coordinator_that_does_not_let_it_in():
    network = Network()
    a = network.node("a", TWO)
    a.is_deaf = True
    network.advance(10.0)
    assert a.dropped


def test_a_node_that_did_not_run_does_not_blame_the_coordinator():
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
    assert link_of(network, "n0") is Reachability.CONNECTED


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


def test_all_answers_that_are_remembered_for_a_node_fit_its_backlog():
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


# -- what is pushed --------------------------------------------------------------------------------


def pushed_per_round(count: int) -> set[tuple[tuple[str, int], ...]]:
    """What each node is sent from being ready in one round to having a seat in the next."""
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


def test_what_a_round_costs_a_node_does_not_grow_with_the_nodes():
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


def test_the_member_table_is_given_to_who_asks():
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


def test_the_member_table_is_for_members_of_the_round():
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


def test_nothing_that_follows_an_attach_without_the_secret_counts():
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


def test_what_a_member_says_after_its_goodbye_counts_nothing_for_the_next_of_its_name():
    network = Network()
    settings = RunSettings(min_nodes=2, max_nodes=2)
    a, _ = met(network, 2, settings)
    session = network.run.connections.by_name["n0"]
    a.reconnects = False
    a.act(a.machine.goodbye("bye"))
    network.settle()
    assert session.node is None


# -- goodbye ---------------------------------------------------------------------------------------


def test_a_goodbye_that_was_not_answered_is_said_again_with_what_came_before_it():
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


def test_reasons_are_cut_and_cleaned_rather_than_refused():
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


def test_a_failure_is_cut_and_cleaned_rather_than_refused():
    network = Network()
    a, b = met(network)
    long = Failure(FailureKind.EXCEPTION, "é\udcff" * 5_000, last_lines=("\udcff",) * 500)
    a.act(a.machine.failed(long))
    network.settle()
    failure = b.changes[0].failure
    assert failure is not None
    assert len(failure.message) == m.TEXT_CHARACTERS_MAX
    assert failure.last_lines == ("?",) * m.LINES_MAX


def test_a_node_that_was_lost_in_silence_takes_nobody_elses_voice() -> None:
    """A coordinator in a node resigns if it hears no other node; it hears c all the time."""
    network = Network()
    nodes = [network.node(name, RunSettings(min_nodes=2, max_nodes=3)) for name in "abc"]
    for node in nodes:
        node.ready()
    network.until(lambda: all(node.rounds for node in nodes))
    nodes[1].is_frozen = True
    network.until(lambda: network.run.membership.roster.get("b") is None, limit_s=60.0)
    assert network.run.connections.hears_another_than("a")
