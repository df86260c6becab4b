"""The effects on a run if its ledger, an etcd, does not answer for a while.

There are two `rallypoint serve` replicas over it, and real nodes. No node may be lost and no round
may end, neither while etcd is stopped nor in the time after it.
"""

from __future__ import annotations

import time
from typing import Final

from rallypoint.bench import driver
from rallypoint.bench.etcd import etcd
from rallypoint.bench.failover import owner_of, replicas
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.node_processes import names, node_processes, problem_of, wait_for
from rallypoint.bench.processes import wait_until
from rallypoint.bench.real_nodes import Specification
from rallypoint.core.values import RunSettings

CALM_S: Final = 1.0
RUN: Final = RunSettings()
WATCH_S: Final = RUN.reconnect_grace_s + RUN.suspect_after_s + 5.0
WITHIN_S: Final = 60.0
REPEATS_MAX: Final = 5


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Stop etcd for `plan.seconds`, each time a new one."""
    about = f"etcd is stopped by SIGSTOP for {plan.seconds:g} s and continued"
    columns = (
        Column(
            "nodes disturbed",
            "nodes",
            f"{about}; nodes that were notified that their round ended, or gave up, until "
            f"{WATCH_S:g} s after that",
            Target(0, worst=True),
        ),
        Column(
            "the run goes on",
            "s",
            f"{about}; from then until one coordinator has all nodes, and the run is active",
        ),
    )
    results = (_once(plan, nodes) for _ in range(min(plan.repeats, REPEATS_MAX)))
    return figures_of("ledger-away", nodes, columns, results)


def _once(plan: driver.Plan, nodes: int) -> tuple[float, float]:
    """How many nodes were disturbed, and how long after etcd continued the run was as before."""
    run_id = plan.run_id()
    with etcd() as started, replicas(f"{started.endpoint}/away", 2) as serving:
        what = Specification(
            endpoint=f"{started.endpoint}/away",
            names=names("node", 0, nodes),
            min_nodes=1,
            max_nodes=nodes,
            run_id=run_id,
            run={"expected_nodes": nodes},
        )
        with node_processes(what) as [group]:
            wait_for([group], "met", "all nodes in a round")
            owner_of(serving, [group], nodes, run_id)
            time.sleep(CALM_S)
            started.stop()
            time.sleep(plan.seconds)
            started.go_on()
            went_on_s = time.monotonic()

            def is_active() -> bool:
                runs = [each.run(run_id) for each in serving]
                return any(r and (r["phase"], r["attached"]) == ("active", nodes) for r in runs)

            wait_until(is_active, "the run to go on", WITHIN_S, lambda: problem_of([group]))
            on_s = time.monotonic() - went_on_s
            time.sleep(WATCH_S)
            disturbed = {**group.first("ended"), **group.first("gone")}
            return float(len(disturbed)), on_s
