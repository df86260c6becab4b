"""A node's machine with changing coordinators: redirected, deposed, taken over, orphaned."""

from __future__ import annotations

import pytest

from rallypoint.client import actions as act
from rallypoint.client import machine as m
from rallypoint.core import reasons
from rallypoint.core.effects import Standing
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.store import Barrier, Get, Set, StoreValue
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    NodeInfo,
    Outcome,
    RoundHead,
    RunSettings,
    Seat,
    Stamp,
)
from rallypoint.wire import messages as wire

HERE = Address("127.0.0.1", 1)
THERE = (Address("there", 2), Address("10.0.0.2", 2))
LOST = Change(ChangeKind.NODE_LOST, 1, ("b",), 1, confirmed=True)


def a_machine(*, is_elected: bool = True) -> m.NodeMachine:
    info = NodeInfo("a", 7, "host")
    return m.NodeMachine("run", info, RunSettings(), silence_s=6.0, is_elected=is_elected)


def welcome(term: int, number: int = 0) -> wire.Welcome:
    return wire.Welcome(Stamp("ledger", term, number), 1, 1.0, Standing(round=number))


def attach(machine: m.NodeMachine, term: int, number: int = 0) -> list[act.Action]:
    machine.connected(0.0)
    return machine.received(welcome(term, number), 0.0)


def test_every_attach_shows_the_same_secret():
    machine = m.NodeMachine(
        "run", NodeInfo("a", 7, "host"), RunSettings(), silence_s=6.0, resume_secret=b"its own"
    )
    shown = []
    for term in (0, 0, 1, 2):  # Two welcomes are lost, then two coordinators let it in.
        [sent] = machine.connected(0.0)
        assert isinstance(sent, act.Send)
        assert isinstance(sent.message, wire.Attach)
        shown.append(sent.message.resume_secret)
        if term:
            machine.received(welcome(term), 0.0)
        machine.disconnected()
    assert shown == [b"its own"] * 4


def in_round(term: int = 1) -> m.NodeMachine:
    machine = a_machine()
    attach(machine, term)
    machine.ready(HERE, 1)
    head, seat = _round()
    machine.received(wire.Formed(Stamp("ledger", term, 1), head, seat), 0.0)
    assert machine.desired is m.DesiredState.IN_ROUND
    return machine


def _round() -> tuple[RoundHead, Seat]:
    return RoundHead(1, 1, 2, 2, Address("h", 1), "digest"), Seat(0, 0, 1)


def refused(refusal: Refusal, term: int = 0, number: int = 0) -> wire.Refused:
    return wire.Refused(Stamp("ledger", term, number), refusal)


def ready_said(actions: list[act.Action]) -> list[wire.Ready]:
    return [each for each in sent(actions) if isinstance(each, wire.Ready)]


def sent(actions: list[act.Action]) -> list[wire.Message]:
    return [each.message for each in actions if isinstance(each, act.Send)]


def test_a_redirected_node_keeps_its_round_and_repeats_its_state() -> None:
    machine = in_round()
    request_id, _ = machine.call(Set("k", b"v"), None)
    refusal = reasons.elsewhere("run", "other", THERE)
    actions = machine.received(refused(refusal, term=1, number=1), 1.0)
    assert actions == [act.Redirected(THERE, refusal.message)]
    assert machine.refused is None
    assert not machine.is_over
    machine.disconnected()
    said = sent(attach(machine, term=2, number=1))
    assert [each.request_id for each in said if isinstance(each, wire.StoreCall)] == [request_id]
    assert machine.ended is None


def test_a_moving_coordinator_ends_no_round() -> None:
    machine = in_round()
    actions = machine.received(refused(reasons.moved("run", "it goes"), term=1, number=1), 1.0)
    assert [type(each) for each in actions] == [act.Redirected]
    assert not machine.is_over


def test_a_coordinator_without_a_term_may_redirect_and_refuse() -> None:
    machine = in_round(term=3)
    assert machine.received(refused(reasons.elsewhere("run", "x", THERE)), 1.0)
    too_old = Refusal(RefusalCode.VERSION, "use another version")
    assert machine.received(refused(too_old), 1.0) == [act.WasRefused(too_old)]


def test_the_late_refusal_of_an_older_term_changes_nothing() -> None:
    machine = in_round(term=3)
    late = Refusal(RefusalCode.NAME_TAKEN, "somebody has the name")
    assert machine.received(refused(late, term=2, number=1), 1.0) == []
    assert machine.refused is None


def test_another_program_at_an_elected_address_is_not_final() -> None:
    stranger = Refusal(RefusalCode.OTHER_RUN, "this coordinator belongs to another run")
    elected, fixed = a_machine(), a_machine(is_elected=False)
    for machine in (elected, fixed):
        machine.connected(0.0)
    assert elected.received(refused(stranger), 0.0) == [act.Redirected((), stranger.message)]
    assert fixed.received(refused(stranger), 0.0) == [act.WasRefused(stranger)]


def test_the_successor_gets_the_reason_of_the_rounds_end() -> None:
    machine = in_round()
    machine.received(wire.Broken(Stamp("ledger", 1, 1), LOST), 1.0)
    assert [each.change for each in ready_said(machine.ready(HERE, 1))] == [None]
    machine.disconnected()
    said = ready_said(attach(machine, term=2, number=1))
    assert [(each.change, each.leaving_round, each.stamp.term) for each in said] == [(LOST, 1, 2)]


def test_the_successor_gets_the_reason_also_from_a_late_node() -> None:
    machine = in_round()
    machine.received(wire.Broken(Stamp("ledger", 1, 1), LOST), 1.0)
    machine.disconnected()
    attach(machine, term=2, number=1)
    assert [each.change for each in ready_said(machine.ready(HERE, 1))] == [LOST]


def test_a_request_for_a_new_round_has_no_cause() -> None:
    machine = in_round()
    machine.disconnected()
    attach(machine, term=2, number=1)
    assert [each.change for each in ready_said(machine.ready(HERE, 1))] == [None]


def test_a_run_that_is_closed_in_the_ledger_is_closed() -> None:
    close = CloseRecord(Outcome.SUCCEEDED, "trained")
    machine = in_round()
    machine.disconnected()
    actions = machine.found_closed(close)
    assert [type(each) for each in actions] == [act.RoundEnded, act.RunEnded]
    assert machine.closed == close


def test_a_node_too_late_for_a_run_gets_that_reason() -> None:
    machine = a_machine()
    (action,) = machine.found_closed(CloseRecord(Outcome.SUCCEEDED, "trained"))
    assert isinstance(action, act.WasRefused)
    assert action.refusal.code is RefusalCode.CLOSED
    assert "trained" in action.refusal.message


def test_an_orphan_ends_its_round_once_and_reports_it() -> None:
    machine = in_round()
    machine.disconnected()
    (action,) = machine.orphaned(30.0)
    assert isinstance(action, act.RoundEnded)
    assert action.change.kind is ChangeKind.NODE_LOST
    assert "no coordinator for 30 s" in str(action.change)
    assert machine.orphaned(31.0) == []
    machine.ready(HERE, 1)
    said = ready_said(attach(machine, term=1, number=1))
    assert [each.change for each in said] == [action.change]


def test_only_an_advancing_beat_shows_a_coordinator_with_a_lease() -> None:
    machine = in_round()
    led = []
    for now_s, beat in ((101.0, 7), (102.0, 7), (103.0, 8), (104.0, 8)):
        machine.received(wire.Beat(machine.stamp, beat), now_s)
        led.append(machine.heartbeats.led_s)
    assert led == [101.0, 101.0, 103.0, 103.0]


def test_a_node_without_a_round_is_no_orphan() -> None:
    assert a_machine().orphaned(30.0) == []


def test_a_repeated_call_has_the_remaining_time() -> None:
    """Also at a barrier: its deadline survives a failover, and no clock is compared (R9)."""
    machine = in_round()
    machine.call(Barrier("start", 0), 10.0, 100.0)
    machine.call(Get("k"), None, 100.0)
    answered, _ = machine.call(Set("k", b"v"), 10.0, 100.0)
    machine.received(wire.StoreAnswer(Stamp("ledger", 1, 1), answered, StoreValue(None)), 101.0)
    machine.disconnected()
    machine.connected(104.0)
    said = sent(machine.received(welcome(2, 1), 104.0))
    calls = [(each.op, each.timeout_s) for each in said if isinstance(each, wire.StoreCall)]
    assert calls == [(Barrier("start", 0), 6.0), (Get("k"), None)]
    machine.disconnected()
    machine.connected(200.0)
    (first, _) = [
        each
        for each in sent(machine.received(welcome(3, 1), 200.0))
        if isinstance(each, wire.StoreCall)
    ]
    assert first.timeout_s == 0.0


# -- which coordinators speak for the run ----------------------------------------------------------


def test_r5_a_coordinator_replaced_in_the_ledger_is_left_at_once() -> None:
    machine = in_round()
    machine.disconnected()
    machine.found_term(Stamp("ledger", 2, 0))
    (dropped,) = attach(machine, term=1, number=1)
    assert isinstance(dropped, act.Drop)
    assert "replaced" in dropped.reason
    assert not machine.is_attached
    machine.disconnected()
    attach(machine, term=2, number=1)
    assert machine.is_attached


def test_r5_a_node_that_never_attached_leaves_a_replaced_coordinator_too() -> None:
    machine = a_machine()
    machine.found_term(Stamp("ledger", 3, 0))
    machine.found_term(Stamp("ledger", 2, 0))
    assert [type(each) for each in attach(machine, term=2)] == [act.Drop]
    machine.disconnected()
    attach(machine, term=3)
    assert machine.is_attached


def test_r5_messages_of_a_replaced_coordinator_change_nothing() -> None:
    machine = in_round()
    machine.found_term(Stamp("ledger", 2, 0))
    assert machine.received(wire.Broken(Stamp("ledger", 1, 1), LOST), 1.0) == []
    assert machine.ended is None


LIMIT = Refusal(RefusalCode.LIMIT, "too many connections")
OTHER_VERSION = Refusal(RefusalCode.VERSION, "uses another version")
RUN_LOST = Refusal(RefusalCode.RUN_LOST, "run 'run' was lost")


def refused_by(ledger_id: str, refusal: Refusal, *, is_elected: bool) -> list[act.Action]:
    """What a node does, that was attached, when this refuses it."""
    machine = a_machine(is_elected=is_elected)
    attach(machine, 1)
    machine.disconnected()
    machine.connected(0.0)
    return machine.received(wire.Refused(Stamp(ledger_id, 0, 0), refusal), 1.0)


@pytest.mark.parametrize("is_elected", [True, False])
def test_a_refusal_without_the_runs_ledger_is_not_final(is_elected: bool) -> None:
    for refusal in (OTHER_VERSION, RUN_LOST):
        actions = refused_by("", refusal, is_elected=is_elected)
        assert actions == [act.Drop(refusal.message)]
        assert refused_by("ledger", refusal, is_elected=is_elected) == [act.WasRefused(refusal)]


def test_a_limit_is_final_for_a_newcomer_but_not_for_a_member() -> None:
    assert refused_by("ledger", LIMIT, is_elected=False) == [act.Drop(LIMIT.message)]
    newcomer = a_machine(is_elected=False)
    newcomer.connected(0.0)
    assert newcomer.received(refused(LIMIT), 0.0) == [act.WasRefused(LIMIT)]


def test_another_ledger_behind_the_endpoint_is_final() -> None:
    assert refused_by("another", RUN_LOST, is_elected=False) == [act.WasRefused(RUN_LOST)]


def test_another_ledger_at_an_address_from_a_ledger_is_not_final() -> None:
    assert refused_by("another", RUN_LOST, is_elected=True) == [act.Drop(RUN_LOST.message)]


def test_a_replaced_ledger_is_final() -> None:
    machine = in_round()
    (action,) = machine.found_replaced()
    assert isinstance(action, act.WasRefused)
    assert action.refusal.code is RefusalCode.RUN_LOST


def test_the_age_of_a_beat_counts_received_messages_only() -> None:
    machine = in_round()
    for now_s, beat in ((101.0, 7), (102.0, 7), (106.5, 7)):
        machine.received(wire.Beat(machine.stamp, beat), now_s)
    assert machine.heartbeats.beat_stood_still_s == 5.5
    machine.received(wire.Beat(machine.stamp, 8), 120.0)
    assert machine.heartbeats.beat_stood_still_s == 0.0


def test_a_node_on_a_ledger_says_that_it_reads_the_ledger() -> None:
    for is_elected in (True, False):
        (said,) = sent(a_machine(is_elected=is_elected).connected(0.0))
        assert isinstance(said, wire.Attach)
        assert said.reads_ledger is is_elected


def test_a_late_tick_judges_after_the_input_was_read() -> None:
    for stall_s in (0.1, 0.6, 0.9):
        machine = in_round()
        while machine.heartbeats.next_tick_s <= machine.heartbeats.silence_s:  # type: ignore[operator]
            machine.tick(machine.heartbeats.next_tick_s)  # type: ignore[arg-type]
        due_s = machine.heartbeats.next_tick_s
        assert due_s is not None
        late_s = due_s + stall_s
        assert not any(isinstance(action, act.Drop) for action in machine.tick(late_s))
        again_s = machine.heartbeats.next_tick_s
        assert again_s is not None
        machine.received(wire.Beat(Stamp("ledger", 1, 1), 9), again_s)
        assert not any(isinstance(action, act.Drop) for action in machine.tick(again_s))


def test_an_always_late_process_still_leaves_a_silent_coordinator() -> None:
    machine = in_round()
    now_s = 0.0
    for _ in range(10_000):
        now_s = (machine.heartbeats.next_tick_s or 0.0) + 0.3
        if any(isinstance(action, act.Drop) for action in machine.tick(now_s)):
            break
    assert machine.heartbeats.silence_s < now_s < 3 * machine.heartbeats.silence_s
