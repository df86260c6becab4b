"""How soon there is a next round after the first 30 % of all ranks were lost, with the coordinator.

Ranks of the first round are in the natural order of names, which is often rack by rank. So one rack
that loses its power takes the coordinator, all that were to be its successors by rank, and the
first ranks. Nodes are objects here, many in one process; the processes of the first ranks are
killed.
"""

from __future__ import annotations

import math
import time
from typing import Final

from rallypoint.bench.driver import Plan
from rallypoint.bench.failover import TTL_S, ledger
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.host_lost import host_of
from rallypoint.bench.node_processes import ATTACH_GRACE_S, last_s, names, node_processes, wait_for
from rallypoint.bench.real_nodes import Specification

SHARE: Final = 0.3
PER_PROCESS_MAX: Final = 100
OVER_S: Final = 5.0
CALM_S: Final = 2.0
START_S: Final = 300.0
WITHIN_S: Final = 300.0
REPEATS_MAX: Final = 3
NEXT_ROUND_S: Final = TTL_S + ATTACH_GRACE_S + OVER_S


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Kill the first ranks, each time in a run and a ledger of its own."""
    results = []
    for _ in range(min(plan.repeats, REPEATS_MAX)):
        with ledger(plan.ledger) as place:
            results.append(_once(plan, place, nodes))
    lost = _lost(nodes)
    about = (
        f"{nodes} nodes, {PER_PROCESS_MAX} in a process at most; from kill -9 of the processes of "
        f"the first {lost} ranks, the coordinator among them, until the last survivor"
    )
    return [
        Figure(
            scenario="rack",
            name=name,
            nodes=nodes,
            unit="s",
            values=tuple(result[column] for result in results),
            about=f"{about} {what}",
            target=target,
        )
        for name, what, column, target in (
            ("the next one serves", "(here: the first) is attached to the next one", 0, None),
            ("all are attached", "is attached to the next one", 1, None),
            ("next round", "has its next round", 2, Target(NEXT_ROUND_S)),
        )
    ]


def _lost(nodes: int) -> int:
    return max(1, round(SHARE * nodes))


def _once(plan: Plan, place: str, nodes: int) -> tuple[float, float, float]:
    lost, run_id = _lost(nodes), plan.run_id()

    def some(first: int, count: int) -> Specification:
        return Specification(
            endpoint=place,
            names=names("node", first, count),
            per_process=math.ceil(count / math.ceil(count / PER_PROCESS_MAX)),
            min_nodes=max(1, nodes // 2),
            max_nodes=nodes,
            run_id=run_id,
            may_host=True,
            regroups=True,
            run={"expected_nodes": nodes},
        )

    # The first ranks come first, so that one of them carries the coordinator.
    with node_processes(some(0, lost)) as [rack]:
        wait_for([rack], "attached", "the first nodes to be let in", within_s=START_S)
        with node_processes(some(lost, nodes - lost)) as [others]:
            wait_for([rack, others], "met", "all nodes in a round", within_s=START_S)
            host_of(rack)
            time.sleep(CALM_S)
            killed_s = rack.kill(rack.names)
            formed = wait_for(
                [others],
                "formed",
                "all survivors in one round",
                killed_s,
                WITHIN_S,
                only=lambda note: note["nodes"] == nodes - lost,
            )
            attached = others.first("attached", killed_s)
            return (
                min(float(each["at_s"]) for each in attached.values()) - killed_s,
                last_s(attached) - killed_s,
                last_s(formed) - killed_s,
            )
