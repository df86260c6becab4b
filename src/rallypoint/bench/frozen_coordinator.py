"""The effects on a run if its only coordinator is stopped by SIGSTOP, and continued later.

No other coordinator can take over. No node may be lost and no round may end, neither while the
coordinator is stopped nor in the time after it.
"""

from __future__ import annotations

import random
import signal
import time
from typing import Final

from rallypoint.bench import coordinator_api
from rallypoint.bench.agents import agents, check_count
from rallypoint.bench.driver import Plan
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.processes import BenchError, wait_until
from rallypoint.core.values import RunSettings

CALM_S: Final = 1.0
RUN: Final = RunSettings()
HEARTBEAT_S: Final = RUN.suspect_after_s / 3
WATCH_S: Final = RUN.suspect_after_s + 3.0
"""How many seconds the run is watched afterwards: more than any default until a node is lost."""
REPEATS_MAX: Final = 5


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Stop the coordinator of this many agents for `plan.seconds`, each time in a new run."""
    check_count("frozen-coordinator", nodes)
    about = f"a `rallypoint serve` is stopped by SIGSTOP for {plan.seconds:g} s and continued"
    columns = (
        Column(
            "nodes disturbed",
            "nodes",
            f"{about}; nodes that are lost, or are notified that their round ended, until "
            f"{WATCH_S:g} s after that",
            Target(0, worst=True),
        ),
        Column(
            "all are attached",
            "s",
            f"{about}; from then until the last node that had dropped its connection is attached "
            "again",
        ),
    )
    results = (_once(plan, nodes) for _ in range(min(plan.repeats, REPEATS_MAX)))
    return figures_of("frozen-coordinator", nodes, columns, results)


def _once(plan: Plan, nodes: int) -> tuple[float, float]:
    """How many nodes were disturbed, and how long the last one took to attach again."""
    run_id, coordinator, port = plan.run_id(), plan.at.process, plan.at.address.port
    assert coordinator is not None

    def connected() -> int:
        shown = coordinator_api.members(port, run_id)
        return sum(member["link"] == "connected" for member in shown)

    with agents(nodes, f"{nodes - 1}:{nodes}", plan.at.endpoint, run_id) as started:
        time.sleep(CALM_S + random.uniform(0, HEARTBEAT_S))
        frozen_s = time.monotonic()
        coordinator.signal(signal.SIGSTOP)
        time.sleep(plan.seconds)
        thawed_s = time.monotonic()
        coordinator.signal(signal.SIGCONT)
        wait_until(lambda: connected() == nodes, "all nodes to be attached again")
        time.sleep(WATCH_S)
        if connected() != nodes:
            raise BenchError("not all nodes were connected at the end")
        lost = nodes - len(coordinator_api.members(port, run_id))
        notified = sum(bool(agent.events("told", frozen_s)) for agent in started)
        attached = [agent.first("attached", thawed_s) for agent in started]
        again_s = max((at_s for at_s in attached if at_s is not None), default=thawed_s)
        return float(max(lost, notified)), again_s - thawed_s
