"""How soon the next round begins after an elected coordinator was lost together with its node.

An elected host is usually lost in this way. Each node is a separate process that may host the run's
coordinator, and the one that hosts it is killed. The lease names the node that hosted the lost
coordinator, so the next coordinator does not wait for that node.
"""

from __future__ import annotations

import time
from typing import Final

from rallypoint.bench.driver import Plan
from rallypoint.bench.failover import TTL_S, ledger
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.node_processes import (
    NodeProcesses,
    last_s,
    names,
    node_processes,
    wait_for,
    wait_for_round,
)
from rallypoint.bench.processes import BenchError
from rallypoint.bench.real_nodes import regrouping

OVER_TTL_S: Final = 5.0
"""How many seconds more than the lease's ttl the next round may take."""
CALM_S: Final = 1.0
WITHIN_S: Final = 180.0
REPEATS_MAX: Final = 5


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Kill the host, each time in a new run and a new ledger."""
    about = "from kill -9 of the node that hosts the elected coordinator until the last survivor"
    columns = (
        Column("all are attached", "s", f"{about} is attached to the next one"),
        Column("next round", "s", f"{about} has its next round", Target(TTL_S + OVER_TTL_S)),
    )
    results = []
    for _ in range(min(plan.repeats, REPEATS_MAX)):
        with ledger(plan.ledger) as place:
            results.append(_once(plan, place, nodes))
    return figures_of("host-lost", nodes, columns, results)


def _once(plan: Plan, place: str, nodes: int) -> tuple[float, float]:
    """Seconds from the kill until all are attached, and until all have the next round."""
    what = regrouping(
        place,
        names("node", 0, nodes),
        plan.run_id(),
        nodes,
        min_nodes=max(1, nodes // 2),
        may_host=True,
    )
    with node_processes(what) as [group]:
        wait_for([group], "met", "all nodes in a round")
        time.sleep(CALM_S)
        killed_s = group.kill([host_of(group)])
        formed_s = wait_for_round([group], killed_s, WITHIN_S)
        attached = wait_for([group], "attached", "all survivors attached", killed_s)
        return last_s(attached) - killed_s, formed_s - killed_s


def host_of(group: NodeProcesses) -> str:
    """The node that hosts the coordinator. Raises BenchError unless there is exactly one."""
    last = {each["name"]: each for each in group.log.all("attached")}
    hosts = [str(name) for name, each in last.items() if each["is_own"]]
    if len(hosts) != 1:
        raise BenchError(f"one node should host the coordinator, but these do: {hosts}")
    return hosts[0]
