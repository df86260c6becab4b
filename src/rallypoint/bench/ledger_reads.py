"""How many bytes one node reads from etcd while its run changes from one coordinator to the next.

There are two `rallypoint serve` replicas and real nodes, many in one process. One node's
connections to etcd pass a proxy that counts, from `kill -9` of the coordinator until that node is
attached to the next one. All bytes that etcd sends count, including those of HTTP and JSON.
"""

from __future__ import annotations

import math
import time
from typing import Final

from rallypoint.bench import driver
from rallypoint.bench.etcd import Etcd, etcd
from rallypoint.bench.failover import owner_of, replicas
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.node_processes import names, node_processes, wait_for
from rallypoint.bench.proxy import Proxy
from rallypoint.bench.real_nodes import Specification

READ_KIB: Final = 256.0
"""The target does not depend on the number of nodes: a node looks at most once a second, and reads
the head of the run, which has at most 8 KiB of the member table.
"""
PER_PROCESS_MAX: Final = 100
CALM_S: Final = 2.0
REPEATS_MAX: Final = 3
START_S: Final = 300.0
WITHIN_S: Final = 120.0
PREFIX: Final = "reads"


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Kill the coordinator of this many nodes, each time with a new etcd."""
    driver.check_descriptors(nodes)
    columns = (
        Column(
            "one node reads",
            "KiB",
            "what etcd sends to one node, from kill -9 of the coordinator until that node is "
            "attached to the next one",
            Target(READ_KIB),
        ),
        Column("it is attached again", "s", "the same time"),
    )
    results = []
    for _ in range(min(plan.repeats, REPEATS_MAX)):
        with etcd() as started:
            results.append(_once(plan, started, nodes))
    return figures_of("ledger-reads", nodes, columns, results)


def _once(plan: driver.Plan, started: Etcd, nodes: int) -> tuple[float, float]:
    """KiB, and seconds."""
    place, run_id = f"{started.endpoint}/{PREFIX}", plan.run_id()

    def some(place: str, which: tuple[str, ...]) -> Specification:
        return Specification(
            endpoint=place,
            names=which,
            per_process=math.ceil(len(which) / math.ceil(len(which) / PER_PROCESS_MAX)),
            min_nodes=nodes,
            max_nodes=nodes,
            run_id=run_id,
        )

    all_ = names("node", 0, nodes)
    with Proxy(started.port) as proxy, replicas(place, 2) as serving:
        counted = some(f"etcd://127.0.0.1:{proxy.port}/{PREFIX}", all_[-1:])
        with node_processes(some(place, all_[:-1]), counted) as [others, one]:
            wait_for([others, one], "met", "all nodes in a round", within_s=START_S)
            owner = owner_of(serving, [others, one], nodes, run_id)
            time.sleep(CALM_S)
            before_bytes, killed_s = proxy.down_bytes, time.monotonic()
            owner.process.kill()
            again = "the node attached to the next coordinator"
            attached = wait_for([one], "attached", again, killed_s, WITHIN_S)
            read_bytes = proxy.down_bytes - before_bytes
            took_s = float(attached[one.names[0]]["at_s"]) - killed_s
            return read_bytes / 1024, took_s
