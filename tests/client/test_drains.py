"""A node's part of the agreement on a last step (R14)."""

from __future__ import annotations

import pytest

from rallypoint.client import actions as act
from rallypoint.client.machine import NodeMachine
from rallypoint.core.effects import Standing
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    Drain,
    NodeInfo,
    RoundHead,
    RunSettings,
    Seat,
    Stamp,
)
from rallypoint.wire import messages as wire

DRAIN = Drain(("b",), 1, 20.0, "a notice", True)


def stamp(term: int = 1) -> Stamp:
    return Stamp("L", term, 1)


def welcomed(machine: NodeMachine, term: int, *, agrees: bool = True) -> list[wire.Message]:
    machine.connected(0.0)
    standing = Standing(round=machine.number)
    welcome = wire.Welcome(stamp(term), 1, 1.0, standing, agrees=agrees)
    return sent(machine.received(welcome, 7.0))


def sent(actions: list[act.Action]) -> list[wire.Message]:
    return [each.message for each in actions if isinstance(each, act.Send)]


def in_round(*, agrees: bool = True) -> NodeMachine:
    machine = NodeMachine("run", NodeInfo("a", 1, "host"), RunSettings(), silence_s=10.0)
    welcomed(machine, 1, agrees=agrees)
    machine.ready(Address("host", 1), 1)
    head = RoundHead(1, 1, 2, 2, Address("host", 1), "digest")
    machine.received(wire.Formed(stamp(), head, Seat(0, 0, 1)), 0.0)
    return machine


def test_what_it_said_is_said_again_to_each_coordinator() -> None:
    """So that a successor decides no step that a worker has passed, and waits for none in vain."""
    machine = in_round()
    assert sent(machine.takes_part()) == [wire.TakesPart(stamp(), 1)]
    assert sent(machine.promise(7)) == [wire.Promise(stamp(), 1, 7)]
    assert sent(machine.drains("notice", 20.0, 3.0)) == [wire.Draining(stamp(), 1, "notice", 20.0)]
    machine.disconnected()
    assert welcomed(machine, 2) == [
        wire.TakesPart(stamp(2), 1),
        wire.Promise(stamp(2), 1, 7),
        wire.Draining(stamp(2), 1, "notice", 16.0),
    ]


def test_a_promise_is_given_once() -> None:
    machine = in_round()
    machine.promise(7)
    assert machine.promise(9) == []
    machine.disconnected()
    assert wire.Promise(stamp(2), 1, 7) in welcomed(machine, 2)


def test_a_coordinator_of_an_older_release_hears_nothing_of_it() -> None:
    machine = in_round(agrees=False)
    for actions in (machine.takes_part(), machine.promise(7), machine.drains("notice", 20.0, 0.0)):
        assert actions == []
    assert not machine.can_agree
    machine.disconnected()
    assert welcomed(machine, 2, agrees=False) == []
    machine.disconnected()
    assert wire.Promise(stamp(3), 1, 7) in welcomed(machine, 3)
    assert machine.can_agree


def test_only_the_first_step_of_its_own_round_counts() -> None:
    machine = in_round()
    assert machine.received(wire.StopAt(stamp(), 2, 9), 0.0) == []
    assert machine.received(wire.Drains(stamp(), 2, DRAIN), 0.0) == []
    assert machine.received(wire.Drains(stamp(), 1, DRAIN), 0.0) == [act.DrainTold(DRAIN)]
    assert machine.received(wire.StopAt(stamp(), 1, 8), 0.0) == [act.StepDecided(8)]
    assert machine.received(wire.StopAt(stamp(), 1, 9), 0.0) == []
    assert (machine.drain, machine.step) == (DRAIN, 8)


@pytest.mark.parametrize("ends", [True, False])
def test_nothing_of_it_outlives_the_round(ends: bool) -> None:
    machine = in_round()
    machine.takes_part()
    machine.promise(7)
    machine.received(wire.StopAt(stamp(), 1, 8), 0.0)
    machine.received(wire.Broken(stamp(), Change(ChangeKind.NODE_LOST, 1, ("b",), 1)), 0.0)
    assert machine.received(wire.Drains(stamp(), 1, DRAIN), 0.0) == []
    if ends:
        machine.disconnected()
        said = welcomed(machine, 2)
        assert not [each for each in said if isinstance(each, wire.Promise | wire.TakesPart)]
        return
    machine.ready(Address("host", 1), 1)
    head = RoundHead(2, 1, 2, 2, Address("host", 1), "digest")
    machine.received(wire.Formed(Stamp("L", 1, 2), head, Seat(0, 0, 1)), 0.0)
    assert (machine.drain, machine.step, machine.can_agree) == (None, None, False)
    assert sent(machine.promise(0)) == [wire.Promise(Stamp("L", 1, 2), 2, 0)]


def test_after_its_round_a_node_promises_nothing_and_hears_of_no_step() -> None:
    machine = in_round()
    machine.received(wire.Broken(stamp(), Change(ChangeKind.NODE_LOST, 1, ("b",), 1)), 0.0)
    assert machine.promise(7) == []
    assert machine.received(wire.StopAt(stamp(), 1, 8), 0.0) == []


def test_a_node_that_has_promised_nothing_says_nothing_of_it() -> None:
    machine = in_round()
    machine.takes_part()
    machine.disconnected()
    assert welcomed(machine, 2) == [wire.TakesPart(stamp(2), 1)]
