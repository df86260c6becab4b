"""A node is asked where its workers stand: only one whose round is active has any that stand."""

from __future__ import annotations

import pytest

from rallypoint.client import actions as act
from rallypoint.client.machine import NodeMachine
from rallypoint.core.effects import Standing
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    NodeInfo,
    RoundHead,
    RunSettings,
    Seat,
    Stamp,
)
from rallypoint.wire import messages as wire

STAMP = Stamp("L", 1, 1)
ASKED = wire.AskStacks(STAMP, 5, 1000)


def in_round(*, tells_stacks: bool) -> NodeMachine:
    info = NodeInfo("a", 1, "host")
    machine = NodeMachine("run", info, RunSettings(), silence_s=9.0, tells_stacks=tells_stacks)
    machine.connected(0.0)
    machine.received(wire.Welcome(STAMP, 1, 1.0, Standing(round=0)), 0.0)
    machine.ready(Address("host", 1), 1)
    head = RoundHead(1, 1, 2, 2, Address("host", 1), "digest")
    machine.received(wire.Formed(STAMP, head, Seat(0, 0, 1)), 0.0)
    return machine


@pytest.mark.parametrize("tells_stacks", [True, False])
@pytest.mark.parametrize("has_workers", [True, False])
def test_R4_only_workers_of_a_round_stand_anywhere(tells_stacks: bool, has_workers: bool) -> None:
    machine = in_round(tells_stacks=tells_stacks)
    if not has_workers:
        machine.received(wire.Broken(STAMP, Change(ChangeKind.NODE_LOST, 1, ("b",), 1)), 0.0)
    found = machine.received(ASKED, 0.0)
    if tells_stacks and has_workers:
        assert found == [act.StacksWanted(5, 1000)]
    else:
        assert found == [act.Send(wire.StacksTold(STAMP, 5))]
