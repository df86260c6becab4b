"""A node's machine, rule by rule: stale messages, missed rounds, what it says again, its ends.

Each test fails for a change of a marked line (`make mutants`) that no other pure test noticed.
"""

from __future__ import annotations

import pytest

from rallypoint.client import actions as act
from rallypoint.client import machine as m
from rallypoint.core import reasons
from rallypoint.core.effects import Standing
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.store import Get
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    FailureKind,
    HostReport,
    NodeInfo,
    Outcome,
    RoundHead,
    RunSettings,
    Seat,
    Stamp,
)
from rallypoint.wire import messages as wire

HERE = Address("here", 1)
CLOSE = CloseRecord(Outcome.SUCCEEDED, "trained")
BOOM = Failure(FailureKind.EXCEPTION, "boom")


def lost(number: int, *, confirmed: bool = True) -> Change:
    return Change(ChangeKind.NODE_LOST, number, ("b",), 1, confirmed=confirmed)


def attach(
    machine: m.NodeMachine,
    number: int = 0,
    *,
    term: int = 1,
    standing: int = 0,
    change: Change | None = None,
) -> list[act.Action]:
    """A coordinator of this term, in this round, admits the node."""
    machine.disconnected()
    machine.connected(0.0)
    told = Standing(round=standing, change=change)
    return machine.received(wire.Welcome(Stamp("ledger", term, number), 1, 1.0, told), 0.0)


def a_machine() -> m.NodeMachine:
    """One that is attached, and ready for its first round."""
    machine = m.NodeMachine("run", NodeInfo("a", 7, "host"), RunSettings(), silence_s=6.0)
    attach(machine)
    machine.ready(HERE, 1)
    return machine


def formed(number: int, term: int = 1) -> wire.Formed:
    head = RoundHead(number, term, 2, 2, Address("h", 1), "0" * 16)
    return wire.Formed(Stamp("ledger", term, number), head, Seat(0, 0, 1))


def in_round(number: int = 3) -> m.NodeMachine:
    machine = a_machine()
    (began,) = machine.received(formed(number), 0.0)
    assert isinstance(began, act.RoundFormed)
    return machine


def ended(number: int = 3) -> m.NodeMachine:
    machine = in_round(number)
    machine.received(wire.Broken(Stamp("ledger", 1, number), lost(number)), 0.0)
    assert machine.ended is not None
    return machine


def said(actions: list[act.Action]) -> list[wire.Message]:
    return [each.message for each in actions if isinstance(each, act.Send)]


def ends(actions: list[act.Action]) -> list[Change]:
    return [each.change for each in actions if isinstance(each, act.RoundEnded)]


# -- rounds --------------------------------------------------------------------------------------


def test_r4_no_round_begins_for_a_node_that_is_not_ready() -> None:
    machine = a_machine()
    machine.depart("preempted")
    assert machine.received(formed(4), 0.0) == []


def test_r4_no_round_begins_twice_nor_an_older_one() -> None:
    machine = ended(3)
    machine.ready(HERE, 1)
    machine.stamp = Stamp("ledger", 1, 0)
    assert machine.received(formed(3), 0.0) == []
    assert machine.received(formed(2), 0.0) == []
    assert len(machine.received(formed(4), 0.0)) == 1


def test_r4_the_end_of_another_round_ends_nothing() -> None:
    machine = in_round(3)
    assert machine.received(wire.Broken(Stamp("ledger", 1, 3), lost(2)), 0.0) == []
    assert machine.ended is None
    new = m.NodeMachine("run", NodeInfo("a", 7, "host"), RunSettings(), silence_s=6.0)
    attach(new)
    assert new.received(wire.Broken(Stamp("ledger", 1, 0), lost(0)), 0.0) == []


def test_r4_calls_end_with_their_round() -> None:
    machine = in_round()
    machine.call(Get("k"), 1.0, 0.0)
    machine.received(wire.Broken(Stamp("ledger", 1, 3), lost(3)), 0.0)
    assert machine.requests.open == {}


def test_r4_a_node_that_leaves_asks_for_no_round() -> None:
    for leaves in (m.NodeMachine.depart, m.NodeMachine.goodbye):
        machine = a_machine()
        leaves(machine, "bye")
        before = machine.desired
        assert machine.ready(HERE, 2) == []
        assert machine.desired is before


# -- what it catches up with ---------------------------------------------------------------------


def test_r13_a_round_that_went_on_without_the_node_has_ended_for_it() -> None:
    machine = in_round(3)
    (end,) = ends(attach(machine, 5, standing=0))
    assert (end.kind, end.round, end.nodes) == (ChangeKind.NODE_LOST, 3, ("a",))
    assert "is in round 5" in end.detail


def test_r13_a_round_that_still_goes_on_does_not_end() -> None:
    machine = in_round(3)
    assert ends(attach(machine, 3, standing=3)) == []
    assert machine.ended is None


def test_r13_a_node_without_a_round_has_none_to_end() -> None:
    assert ends(attach(a_machine(), 5)) == []


def test_r13_the_verdict_on_its_last_round_reaches_the_node_later() -> None:
    machine = in_round(3)
    machine.received(wire.Broken(Stamp("ledger", 1, 3), lost(3, confirmed=False)), 0.0)
    assert ends(attach(machine, 3, change=lost(3))) == [lost(3)]
    assert ends(attach(machine, 3, change=lost(3))) == []


def test_r4_r7_a_node_leaves_the_round_that_it_missed() -> None:
    machine = ended(3)
    machine.ready(HERE, 1)
    actions = attach(machine, 5, change=lost(5))
    assert ends(actions) == []
    (ready,) = (each for each in said(actions) if isinstance(each, wire.Ready))
    assert ready.leaving_round == 5


def test_r7_an_earlier_missed_round_changes_nothing() -> None:
    machine = ended(3)
    attach(machine, 6, change=lost(6))
    machine.ready(HERE, 1)
    (ready,) = (
        each for each in said(attach(machine, 6, change=lost(4))) if isinstance(each, wire.Ready)
    )
    assert ready.leaving_round == 6


# -- what it says again --------------------------------------------------------------------------


def kinds_said(machine: m.NodeMachine, number: int = 3, standing: int = 3) -> list[str]:
    return [type(each).__name__ for each in said(attach(machine, number, standing=standing))]


def test_r7_each_state_is_said_again_to_the_next_coordinator() -> None:
    assert kinds_said(a_machine(), 0, 0) == ["Ready"]
    assert kinds_said(in_round()) == []
    failed = in_round()
    failed.failed(BOOM)
    assert kinds_said(failed) == ["Failed"]
    done = in_round()
    done.done()
    assert kinds_said(done) == ["Done"]
    departing = in_round()
    departing.depart("bye")
    assert kinds_said(departing) == ["Departing"]
    gone = in_round()
    gone.goodbye("bye")
    assert kinds_said(gone) == ["Goodbye"]


def test_r7_a_failure_is_not_said_again_after_the_end_of_its_round() -> None:
    machine = in_round()
    machine.failed(BOOM)
    machine.received(wire.Broken(Stamp("ledger", 1, 3), lost(3)), 0.0)
    assert "Failed" not in kinds_said(machine)
    machine.ready(HERE, 1)
    assert kinds_said(machine) == ["Ready"]


# -- refusals, and messages that are too old -----------------------------------------------------


def refused(code: RefusalCode, stamp: Stamp) -> wire.Refused:
    return wire.Refused(stamp, Refusal(code, "no", addresses=(Address("there", 2),)))


@pytest.mark.parametrize("code", [RefusalCode.ELSEWHERE, RefusalCode.MOVED])
def test_r7_a_redirect_counts_whatever_its_term(code: RefusalCode) -> None:
    machine = in_round(3)
    attach(machine, 3, term=5, standing=3)
    (redirected,) = machine.received(refused(code, Stamp("ledger", 2, 1)), 0.0)
    assert isinstance(redirected, act.Redirected)


def test_r5_a_refusal_of_an_earlier_term_has_no_effect() -> None:
    machine = in_round(3)
    attach(machine, 3, term=5, standing=3)
    assert machine.received(refused(RefusalCode.CONFLICT, Stamp("ledger", 2, 1)), 0.0) == []
    assert machine.refused is None


def test_r5_nothing_below_the_term_that_the_ledger_has_counts() -> None:
    machine = a_machine()
    machine.found_term(Stamp("ledger", 2, 0))
    assert machine.received(formed(1, term=1), 0.0) == []
    machine.found_term(Stamp("ledger", 1, 0))
    assert machine.received(formed(1, term=1), 0.0) == []
    assert len(machine.received(formed(1, term=2), 0.0)) == 1


def test_r7_a_new_node_is_refused_for_good() -> None:
    machine = m.NodeMachine("run", NodeInfo("a", 7, "host"), RunSettings(), silence_s=6.0)
    machine.connected(0.0)
    (final,) = machine.received(refused(RefusalCode.LIMIT, Stamp("ledger", 1, 0)), 0.0)
    assert isinstance(final, act.WasRefused)


def test_r7_a_new_node_with_a_ledger_is_refused_for_good() -> None:
    info = NodeInfo("a", 7, "host")
    machine = m.NodeMachine("run", info, RunSettings(), silence_s=6.0, is_elected=True)
    machine.connected(0.0)
    (final,) = machine.received(refused(RefusalCode.CONFLICT, Stamp("ledger", 1, 0)), 0.0)
    assert isinstance(final, act.WasRefused)


def test_r5_the_term_that_the_ledger_has_rises() -> None:
    machine = a_machine()
    for term in (2, 3):
        machine.found_term(Stamp("ledger", term, 0))
    assert machine.received(formed(1, term=2), 0.0) == []
    new = m.NodeMachine("run", NodeInfo("a", 7, "host"), RunSettings(), silence_s=6.0)
    new.found_term(Stamp("ledger", 1, 0))
    (dropped,) = attach(new, term=0)
    assert isinstance(dropped, act.Drop)


@pytest.mark.parametrize("state", ["ready", "departing"])
def test_r4_only_a_round_that_the_node_is_in_fails_or_is_done(state: str) -> None:
    machine = a_machine()
    if state == "departing":
        machine.depart("bye")
    before = machine.desired
    assert machine.failed(BOOM) == machine.done() == []
    assert machine.desired is before
    assert kinds_said(machine, 0, 0) == [state.title()]


# -- ends ----------------------------------------------------------------------------------------


def test_r6_the_first_close_counts() -> None:
    machine = in_round()
    closed = wire.Closed(Stamp("ledger", 1, 3), CLOSE)
    assert [type(each) for each in machine.received(closed, 0.0)] == [
        act.RoundEnded,
        act.RunEnded,
    ]
    later = wire.Closed(Stamp("ledger", 1, 3), CloseRecord(Outcome.FAILED, "another"))
    assert machine.received(later, 0.0) == []
    assert machine.closed == CLOSE


def test_r13_a_close_ends_a_round_that_is_on_and_no_other() -> None:
    for machine in (a_machine(), ended(3)):
        closed = wire.Closed(Stamp("ledger", 1, 3), CLOSE)
        assert [type(each) for each in machine.received(closed, 0.0)] == [act.RunEnded]


@pytest.mark.parametrize("ledger_id", ["ledger", "another"])
def test_r13_a_member_whose_name_another_start_has_is_superseded(ledger_id: str) -> None:
    machine = in_round()
    machine.disconnected()
    machine.connected(0.0)
    taken = reasons.name_taken("a", "host")
    refused = machine.received(wire.Refused(Stamp(ledger_id, 1, 4), taken), 0.0)
    # It was lost, and its round has ended. In another ledger the name may be that of any node.
    is_lost = ledger_id == "ledger"
    assert refused == [act.WasRefused(reasons.superseded("a") if is_lost else taken)]


def test_r13_a_node_that_was_in_no_round_yet_is_told_that_its_name_is_taken() -> None:
    """Its workers have not begun, so nothing of it has to stop."""
    machine = a_machine()
    machine.disconnected()
    machine.connected(0.0)
    taken = reasons.name_taken("a", "host")
    refused = machine.received(wire.Refused(Stamp("ledger", 1, 4), taken), 0.0)
    assert refused == [act.WasRefused(taken)]


def test_a_newcomer_is_told_that_its_name_is_taken() -> None:
    machine = m.NodeMachine("run", NodeInfo("a", 7, "host"), RunSettings(), silence_s=6.0)
    machine.connected(0.0)
    taken = reasons.name_taken("a", "host")
    refused = machine.received(wire.Refused(Stamp("ledger", 1, 4), taken), 0.0)
    assert refused == [act.WasRefused(taken)]


def test_r13_only_a_node_in_a_round_is_orphaned() -> None:
    assert a_machine().orphaned(10.0) == []
    assert ended(3).orphaned(10.0) == []
    assert len(ends(in_round(3).orphaned(10.0))) == 1


@pytest.mark.parametrize("state", list(m.DesiredState))
def test_r11_only_a_node_that_does_not_leave_anyway_is_asked_to(state: m.DesiredState) -> None:
    machine = in_round()
    machine.desired = state
    asked = machine.received(wire.AskedToLeave(machine.stamp, "ann", "late"), 1.0)
    leaves = ("done", "departing", "gone")
    assert asked == ([] if state in leaves else [act.LeaveWanted("drained by ann: late")])


def test_r7_an_unfit_node_asks_only_a_coordinator_that_keeps_it_out() -> None:
    """An older one would take it for a fit one."""
    machine = m.NodeMachine("run", NodeInfo("a", 7, "host"), RunSettings(), silence_s=6.0)
    attach(machine)
    assert machine.ready(HERE, 1, "GPU 3 fell off") == []
    machine.disconnected()
    machine.connected(0.0)
    welcome = wire.Welcome(Stamp("ledger", 1, 0), 1, 1.0, Standing(), takes_unfit=True)
    said = [each.message for each in machine.received(welcome, 0.0) if isinstance(each, act.Send)]
    assert [each.unfit for each in said if isinstance(each, wire.Ready)] == ["GPU 3 fell off"]
    (fit,) = machine.fitness("")
    assert isinstance(fit, act.Send)
    assert isinstance(fit.message, wire.Ready)
    assert fit.message.unfit == ""


def test_a_question_of_another_coordinator_is_not_answered_to_this_one() -> None:
    machine = a_machine()
    (asked,) = machine.received(wire.AskWitness(Stamp("ledger", 1, 0), 1, "10.0.0.7"), 0.0)
    assert isinstance(asked, act.HostReportWanted)
    (said,) = machine.testify(asked, HostReport.NOT_ANSWERED)
    assert isinstance(said, act.Send)
    attach(machine)  # Again: its question is still open.
    assert machine.testify(asked, HostReport.NOT_ANSWERED)
    attach(machine, term=2)  # Its first question is about another host.
    assert not machine.testify(asked, HostReport.NOT_ANSWERED)
