"""How soon there is a next round after three nodes of ten were killed at once, as spot instances.

Each node is a process of its own, without a worker, so that a hundred fit into one machine. What
survivors' workers do decides what the coordinator hears: they *fail* 20 ms later, as gloo's do
whose peer is gone, or they *hang*, as NCCL's do. Survivors want the next round as soon as they are
told, as if workers stopped at once.
"""

from __future__ import annotations

import signal
import time
from typing import Final

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.node_processes import NodeProcesses, last_s, names, node_processes, wait_for
from rallypoint.bench.real_nodes import Specification

SHARE: Final = 0.3
NEXT_ROUND_S: Final = 10.0
FAIL_AFTER_S: Final = 0.02
CALM_S: Final = 1.0
WITHIN_S: Final = 180.0
REPEATS_MAX: Final = 5
WORKERS: Final = ("fail", "hang")


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Kill three of ten, each time in a run of its own."""
    figures = []
    for workers in WORKERS:
        results = [_once(plan, nodes, workers) for _ in range(min(plan.repeats, REPEATS_MAX))]
        lost = _lost(nodes)
        about = (
            f"{nodes} processes, a node each; from the first kill -9 of {lost} until the last "
            f"survivor {{}}; survivors' workers {workers}"
        )
        for name, what, column, target in (
            ("told", "is told that the round has ended", 0, None),
            ("next round", "has its next round", 1, Target(NEXT_ROUND_S)),
        ):
            figures.append(
                Figure(
                    scenario="preempted",
                    name=f"workers {workers}: {name}",
                    nodes=nodes,
                    unit="s",
                    values=tuple(result[column] for result in results),
                    about=about.format(what),
                    target=target,
                )
            )
    return figures


def _lost(nodes: int) -> int:
    return max(1, round(SHARE * nodes))


def _once(plan: driver.Plan, nodes: int, workers: str) -> tuple[float, float]:
    what = Specification(
        endpoint=plan.at.endpoint,
        names=names("node", 0, nodes),
        min_nodes=nodes - _lost(nodes),
        max_nodes=nodes,
        run_id=plan.run_id(),
        regroups=True,
        # The first round is of all; those after it are of whoever is left.
        run={"expected_nodes": nodes},
    )
    with node_processes(what) as [group]:
        wait_for([group], "met", "all nodes in a round")
        time.sleep(CALM_S)
        # Every third or so, so that no rank is spared: with them goes node rank 0.
        gone = [group.names[index * nodes // _lost(nodes)] for index in range(_lost(nodes))]
        killed_s = group.kill(gone)
        if workers == "fail":
            time.sleep(max(0.0, killed_s + FAIL_AFTER_S - time.monotonic()))
            group.signal(group.names, signal.SIGUSR1)
        return _survivors(group, killed_s)


def _survivors(group: NodeProcesses, killed_s: float) -> tuple[float, float]:
    """Until all are told, and until all are in one round without those that are gone."""
    left = len(group.names)
    formed = wait_for(
        [group],
        "formed",
        "all survivors in one round",
        killed_s,
        WITHIN_S,
        only=lambda note: note["nodes"] == left,
    )
    told = wait_for([group], "told", "all survivors to be told", killed_s)
    return last_s(told) - killed_s, last_s(formed) - killed_s
