"""How soon there is a next round after an elected coordinator was lost together with its node.

The usual loss of an elected host. Each node is a process of its own that may carry the run's
coordinator; the one that does is killed. The next coordinator knows from the lease which node died
with it.
"""

from __future__ import annotations

import time
from typing import Final

from rallypoint.bench.driver import Plan
from rallypoint.bench.failover import TTL_S, ledger
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.node_processes import NodeProcesses, last_s, names, node_processes, wait_for
from rallypoint.bench.processes import BenchError
from rallypoint.bench.real_nodes import Specification

OVER_TTL_S: Final = 5.0
CALM_S: Final = 1.0
WITHIN_S: Final = 180.0
REPEATS_MAX: Final = 5


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Kill the host, each time in a run and a ledger of its own."""
    results = []
    for _ in range(min(plan.repeats, REPEATS_MAX)):
        with ledger(plan.ledger) as place:
            results.append(_once(plan, place, nodes))
    about = "from kill -9 of the node that carries the elected coordinator until the last survivor"
    return [
        Figure(
            scenario="host-lost",
            name=name,
            nodes=nodes,
            unit="s",
            values=tuple(result[column] for result in results),
            about=f"{about} {what}",
            target=target,
        )
        for name, what, column, target in (
            ("all are attached", "is attached to the next one", 0, None),
            ("next round", "has its next round", 1, Target(TTL_S + OVER_TTL_S)),
        )
    ]


def _once(plan: Plan, place: str, nodes: int) -> tuple[float, float]:
    what = Specification(
        endpoint=place,
        names=names("node", 0, nodes),
        min_nodes=max(1, nodes // 2),
        max_nodes=nodes,
        run_id=plan.run_id(),
        may_host=True,
        regroups=True,
        run={"expected_nodes": nodes},
    )
    with node_processes(what) as [group]:
        wait_for([group], "met", "all nodes in a round")
        time.sleep(CALM_S)
        killed_s = group.kill([host_of(group)])
        return regrouped(group, killed_s)


def host_of(group: NodeProcesses) -> str:
    """The node that carries the coordinator. Raises BenchError unless there is one."""
    last = {note["name"]: note for note in group.log.all("attached")}
    hosts = [str(name) for name, note in last.items() if note["is_own"]]
    if len(hosts) != 1:
        raise BenchError(f"these nodes carry the coordinator, instead of one: {hosts}")
    return hosts[0]


def regrouped(group: NodeProcesses, killed_s: float) -> tuple[float, float]:
    """Until all survivors are attached again, and until they are in one round."""
    left = len(group.names)
    formed = wait_for(
        [group],
        "formed",
        "all survivors in one round",
        killed_s,
        WITHIN_S,
        only=lambda note: note["nodes"] == left,
    )
    attached = wait_for([group], "attached", "all survivors attached", killed_s)
    return last_s(attached) - killed_s, last_s(formed) - killed_s
