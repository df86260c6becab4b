"""The scenarios of `rallypoint bench`: the question of each, and what it needs.

They are in one table, from which the help, the defaults and the checks of the options are made, so
that a scenario is added in one place. Each measurement is in a module of rallypoint/bench, which is
loaded when that scenario is chosen.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from rallypoint.bench.driver import Plan
    from rallypoint.bench.figure import Figure

Measure = Callable[["Plan", int], "list[Figure]"]


class Scenario(enum.StrEnum):
    """The names of the scenarios."""

    MEET = "meet"
    JOIN = "join"
    REGROUP = "regroup"
    RECOVER = "recover"
    DRAIN = "drain"
    FIRST_START = "first-start"
    HANG = "hang"
    KILL = "kill"
    CUT = "cut"
    PREEMPTED = "preempted"
    POWER_LOSS = "power-loss"
    FROZEN_NODE = "frozen-node"
    FROZEN_COORDINATOR = "frozen-coordinator"
    FAILOVER = "failover"
    HOST_LOST = "host-lost"
    RACK = "rack"
    LEDGER_AWAY = "ledger-away"
    LEDGER_READS = "ledger-reads"
    LEDGER_WRITES = "ledger-writes"
    IDLE = "idle"
    AGREE = "agree"
    STORE = "store"
    RUNS = "runs"
    STRANGERS = "strangers"
    NEIGHBOUR = "neighbour"
    MODEL = "model"


class At(enum.Enum):
    """The allowed values of `--at` for a scenario, and which coordinator is started for it."""

    COORDINATOR = enum.auto()
    """served, embedded, or the endpoint of a running coordinator."""
    STARTED = enum.auto()
    """served or embedded; the scenario starts them itself."""
    LEDGER = enum.auto()
    """A ledger; the scenario starts its coordinators over it."""
    SERVED = enum.auto()
    """No value: a `rallypoint serve` is started."""
    NONE = enum.auto()
    """No value: the scenario starts all that it needs."""


class Needs(msgspec.Struct, frozen=True):
    """What a scenario measures, in few words, and its options. `nodes`, `seconds`: defaults."""

    measures: str
    nodes: str = "8,32,128"
    at: At = At.COORDINATOR
    seconds: float = 10.0


NEEDS: Final = {
    Scenario.MEET: Needs("from the first node's call to the last node's answer"),
    Scenario.JOIN: Needs(
        "the same for programs that call rallypoint.join(), with no coordinator yet",
        "2,64",
        At.NONE,
    ),
    Scenario.REGROUP: Needs("a node is killed, leaves, arrives, or is frozen"),
    Scenario.RECOVER: Needs("real agents and workers, from a kill to the next training step", "3"),
    Scenario.DRAIN: Needs("real agents and workers, one of which leaves at an agreed step", "3"),
    Scenario.FIRST_START: Needs(
        "the first start of a DDP job with --preload=torch, and cold", "3", At.NONE
    ),
    Scenario.HANG: Needs("one worker of real agents hangs: until all know who", "3", At.NONE),
    Scenario.KILL: Needs("kill -9 of real agents", "8", At.NONE),
    Scenario.CUT: Needs("the network of one node is cut", "8", At.SERVED),
    Scenario.PREEMPTED: Needs("30 % of the nodes are killed at once", "100", At.SERVED),
    Scenario.POWER_LOSS: Needs("one of many hosts has no power any more (as root)", "8", At.NONE),
    Scenario.FROZEN_NODE: Needs("SIGSTOP of a real agent and its worker", "8", At.NONE),
    Scenario.FROZEN_COORDINATOR: Needs(
        "the only coordinator is stopped and continued", "8", At.SERVED, 20.0
    ),
    Scenario.FAILOVER: Needs("a coordinator is killed, terminated or frozen", "8", At.LEDGER),
    Scenario.HOST_LOST: Needs("an elected coordinator is lost with its node", "8", At.LEDGER),
    Scenario.RACK: Needs(
        "the first 30 % of the ranks are lost, with the coordinator", "1000", At.LEDGER
    ),
    Scenario.LEDGER_AWAY: Needs("etcd is stopped and continued", "8", At.NONE),
    Scenario.LEDGER_READS: Needs("bytes that a node reads from etcd", "10,100,1000", At.NONE),
    Scenario.LEDGER_WRITES: Needs("bytes that a run writes into etcd", "10000", At.NONE),
    Scenario.IDLE: Needs("messages, bytes, CPU and memory of an idle run"),
    Scenario.AGREE: Needs("virtual nodes agree on the step at which one of them leaves"),
    Scenario.STORE: Needs("calls a second, and barriers"),
    Scenario.RUNS: Needs("one run, alone and with many other runs", "16"),
    Scenario.NEIGHBOUR: Needs("one run while another one floods the coordinator", "12"),
    Scenario.STRANGERS: Needs("an attack without a token", "64", At.STARTED, 60.0),
    Scenario.MODEL: Needs("what a node costs, and an estimate for more nodes", "128,256,512,1024"),
}

SCENARIOS_HELP: Final = (
    "; ".join(f"{each}: {needs.measures}" for each, needs in NEEDS.items()) + "."
)


def _defaults_help() -> str:
    """The default numbers of nodes: the usual ones, then those of scenarios with others."""
    usual = NEEDS[Scenario.MEET].nodes
    own: dict[str, list[str]] = {}
    for each, needs in NEEDS.items():
        if needs.nodes != usual:
            own.setdefault(needs.nodes, []).append(each.value)
    return "; ".join([usual, *(f"{', '.join(names)}: {nodes}" for nodes, names in own.items())])


NODES_HELP: Final = f"How many nodes, one or more sizes (default: {_defaults_help()})."


def measure_of(scenario: Scenario) -> Measure:
    """The function that measures it. MODEL has none, because it measures all sizes together."""
    from rallypoint.bench import (
        agree,
        cut,
        drain,
        failover,
        first_start,
        frozen_coordinator,
        frozen_node,
        hang,
        host_lost,
        idle,
        join,
        kill,
        ledger_away,
        ledger_reads,
        ledger_writes,
        meet,
        neighbour,
        power_loss,
        preempted,
        rack,
        recover,
        regroup,
        runs,
        store,
        strangers,
    )

    return {
        Scenario.MEET: meet.measure,
        Scenario.JOIN: join.measure,
        Scenario.REGROUP: regroup.measure,
        Scenario.RECOVER: recover.measure,
        Scenario.DRAIN: drain.measure,
        Scenario.FIRST_START: first_start.measure,
        Scenario.HANG: hang.measure,
        Scenario.POWER_LOSS: power_loss.measure,
        Scenario.KILL: kill.measure,
        Scenario.CUT: cut.measure,
        Scenario.PREEMPTED: preempted.measure,
        Scenario.FROZEN_NODE: frozen_node.measure,
        Scenario.FROZEN_COORDINATOR: frozen_coordinator.measure,
        Scenario.FAILOVER: failover.measure,
        Scenario.HOST_LOST: host_lost.measure,
        Scenario.RACK: rack.measure,
        Scenario.LEDGER_AWAY: ledger_away.measure,
        Scenario.LEDGER_READS: ledger_reads.measure,
        Scenario.LEDGER_WRITES: ledger_writes.measure,
        Scenario.IDLE: idle.measure,
        Scenario.AGREE: agree.measure,
        Scenario.STORE: store.measure,
        Scenario.RUNS: runs.measure,
        Scenario.STRANGERS: strangers.measure,
        Scenario.NEIGHBOUR: neighbour.measure,
    }[scenario]
