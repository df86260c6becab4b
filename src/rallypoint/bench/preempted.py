"""How soon the next round begins after three of ten nodes were killed at once, like spot nodes.

Each node is a separate process without a worker, so that a hundred fit on one machine. The reports
to the coordinator depend on the survivors' workers: they *fail* 20 ms later, like gloo's workers
after the loss of a peer, or they *hang*, like NCCL's. A survivor asks for the next round as soon as
it is notified that the round ended, as if its workers stopped at once.
"""

from __future__ import annotations

import signal
import time
from typing import Final

from rallypoint.bench import driver
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.node_processes import (
    last_s,
    names,
    node_processes,
    wait_for,
    wait_for_round,
)
from rallypoint.bench.real_nodes import regrouping

SHARE: Final = 0.3
"""The part of the nodes that is killed."""
NEXT_ROUND_S: Final = 10.0
FAIL_AFTER_S: Final = 0.02
CALM_S: Final = 1.0
WITHIN_S: Final = 180.0
REPEATS_MAX: Final = 5
WORKERS: Final = ("fail", "hang")


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Kill three of ten, each time in a new run."""
    figures = []
    for workers in WORKERS:
        about = (
            f"{nodes} processes, a node each; from the first kill -9 of {_lost(nodes)} until the "
            f"last survivor {{}}; survivors' workers {workers}"
        )
        columns = (
            Column(
                f"workers {workers}: told", "s", about.format("is notified that the round ended")
            ),
            Column(
                f"workers {workers}: next round",
                "s",
                about.format("has its next round"),
                Target(NEXT_ROUND_S),
            ),
        )
        results = [_once(plan, nodes, workers) for _ in range(min(plan.repeats, REPEATS_MAX))]
        figures += figures_of("preempted", nodes, columns, results)
    return figures


def _lost(nodes: int) -> int:
    return max(1, round(SHARE * nodes))


def _once(plan: driver.Plan, nodes: int, workers: str) -> tuple[float, float]:
    """Seconds from the kill until all survivors are notified, and until all have the next round."""
    lost = _lost(nodes)
    what = regrouping(
        plan.at.endpoint, names("node", 0, nodes), plan.run_id(), nodes, min_nodes=nodes - lost
    )
    with node_processes(what) as [group]:
        wait_for([group], "met", "all nodes in a round")
        time.sleep(CALM_S)
        # Spread over all ranks: node rank 0 is among them.
        killed_s = group.kill([group.names[index * nodes // lost] for index in range(lost)])
        if workers == "fail":
            time.sleep(max(0.0, killed_s + FAIL_AFTER_S - time.monotonic()))
            group.signal(group.names, signal.SIGUSR1)
        formed_s = wait_for_round([group], killed_s, WITHIN_S)
        notified = wait_for([group], "told", "all survivors to be notified", killed_s)
        return last_s(notified) - killed_s, formed_s - killed_s
