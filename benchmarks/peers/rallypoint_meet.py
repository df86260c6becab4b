"""Rallypoint by its own bench: virtual nodes in one process, `rallypoint serve` in another.

The nodes have the shipped node machine and messages over a lean WebSocket. The server is the
command that users run, with its defaults.
"""

from __future__ import annotations

import time
from typing import Any, Final

from benchmarks.peers import common
from rallypoint._version import __version__
from rallypoint.bench import driver
from rallypoint.bench import meet as bench

DEATH_NODES: Final = 8
NAMES: Final = {"warm": "warm", "cold": "cold", "skew": "skew", "coordinator's CPU": "server_cpu"}


def new(wanted: dict[str, int]) -> common.Measured:
    """An empty result with the version."""
    return common.Measured(f"rallypoint {__version__}", "virtual nodes of one process", wanted)


def meet(nodes: int, repeats: int) -> common.Measured:
    """`rallypoint bench meet` with this many nodes and a new `rallypoint serve`."""
    found = new({"cold": min(repeats, bench.COLD_REPEATS_MAX), "warm": repeats})
    with driver.served() as where:
        found.event_loop = _event_loop(where)
        for figure in bench.measure(driver.Plan(where, repeats=repeats), nodes):
            if figure.name in NAMES:
                found.values[NAMES[figure.name]] = list(figure.values)
    return found


def _event_loop(where: driver.Coordinator) -> str:
    """The event loop of the server, and of a process of nodes like those that are measured."""
    assert where.process is not None
    with driver.fleets(1) as fleets:
        fleets.ask("settle")
        return common.event_loop(where.process.pid, fleets.each[0].process.pid)


def death(kind: str, repeats: int) -> common.Measured:
    """One of eight dies, with default settings: until the last of the others is in the next round.

    Killed: the others ask for the next round as soon as they are notified. Silent: another node's
    worker fails at once, since the coordinator cannot see the silence yet; all nodes ask for
    the next round as soon as they are notified of that failure.
    """
    found = new({kind: repeats})
    with driver.served() as where:
        plan = driver.Plan(where)
        for _ in range(repeats):
            with driver.fleets(1) as fleets:
                found.add(kind, _death(plan, fleets, kind))
    return found


def _death(plan: driver.Plan, fleets: driver.Fleets, kind: str) -> float:
    settings: dict[str, Any] = {
        "min_nodes": DEATH_NODES - 1,
        "max_nodes": DEATH_NODES,
        "max_restarts": None,
    }
    fleet = fleets.each[0]
    fleets.connect(plan.at, run_id=plan.run_id(), nodes=DEATH_NODES, settings=settings, ready=True)
    time.sleep(1.0)
    fleet.ask("expect_end", but=1)
    index = DEATH_NODES - 1
    if kind == common.KILLED:
        died_s: float = fleet.ask("kill", index=index)["at_s"]
    else:
        died_s = fleet.ask("freeze", index=index)["at_s"]
        fleet.ask("fail", index=0)
    fleet.ask("ended")
    formed_s: float = fleet.ask("meet")["formed_s"]
    return formed_s - died_s


if __name__ == "__main__":
    common.main(meet, death)
