"""How soon the next round begins after the first 30 % of all ranks were lost, with the coordinator.

The ranks of the first round are in the natural order of the nodes' names, which often puts one rack
after another. So the power loss of a rack ends the coordinator, all nodes that would be its
successor by rank, and the first ranks. The nodes are objects, many in one process; the processes of
the first ranks are killed.
"""

from __future__ import annotations

import math
import time
from typing import Final

from rallypoint.bench.driver import Plan
from rallypoint.bench.failover import TTL_S, ledger
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.host_lost import host_of
from rallypoint.bench.node_processes import (
    ATTACH_GRACE_S,
    last_s,
    names,
    node_processes,
    wait_for,
    wait_for_round,
)
from rallypoint.bench.real_nodes import Specification, regrouping

SHARE: Final = 0.3
"""The part of the ranks that is lost."""
PER_PROCESS_MAX: Final = 100
OVER_S: Final = 5.0
CALM_S: Final = 2.0
START_S: Final = 300.0
WITHIN_S: Final = 300.0
REPEATS_MAX: Final = 3
NEXT_ROUND_S: Final = TTL_S + ATTACH_GRACE_S + OVER_S


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Kill the first ranks, each time in a new run and a new ledger."""
    about = (
        f"{nodes} nodes, {PER_PROCESS_MAX} in a process at most; from kill -9 of the processes of "
        f"the first {_lost(nodes)} ranks, the coordinator among them, until the"
    )
    columns = (
        Column("the next one serves", "s", f"{about} first survivor is attached to the next one"),
        Column("all are attached", "s", f"{about} last survivor is attached to the next one"),
        Column(
            "next round", "s", f"{about} last survivor has its next round", Target(NEXT_ROUND_S)
        ),
    )
    results = []
    for _ in range(min(plan.repeats, REPEATS_MAX)):
        with ledger(plan.ledger) as place:
            results.append(_once(plan, place, nodes))
    return figures_of("rack", nodes, columns, results)


def _lost(nodes: int) -> int:
    return max(1, round(SHARE * nodes))


def _once(plan: Plan, place: str, nodes: int) -> tuple[float, float, float]:
    """Seconds from the kill, in the order of the columns."""
    lost, run_id = _lost(nodes), plan.run_id()

    def some(first: int, count: int) -> Specification:
        return regrouping(
            place,
            names("node", first, count),
            run_id,
            nodes,
            min_nodes=max(1, nodes // 2),
            per_process=math.ceil(count / math.ceil(count / PER_PROCESS_MAX)),
            may_host=True,
        )

    # The first ranks are started first, so that one of them hosts the coordinator.
    with node_processes(some(0, lost)) as [rack]:
        wait_for([rack], "attached", "the first nodes to attach", within_s=START_S)
        with node_processes(some(lost, nodes - lost)) as [others]:
            wait_for([rack, others], "met", "all nodes in a round", within_s=START_S)
            host_of(rack)
            time.sleep(CALM_S)
            killed_s = rack.kill(rack.names)
            formed_s = wait_for_round([others], killed_s, WITHIN_S)
            attached = others.first("attached", killed_s)
            return (
                min(float(each["at_s"]) for each in attached.values()) - killed_s,
                last_s(attached) - killed_s,
                formed_s - killed_s,
            )
