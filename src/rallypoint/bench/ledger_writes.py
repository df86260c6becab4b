"""How many bytes a run with very many members writes into etcd in each round.

There is a `rallypoint serve` over an etcd with etcd's own defaults, and virtual nodes that meet
again and again. etcd counts the bytes of keys and values that were put, and the growth of its file
with all kept revisions.
"""

from __future__ import annotations

from typing import Final

from rallypoint.bench import driver
from rallypoint.bench.etcd import etcd
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.meet import settings

MB: Final = 1_000_000.0
ROUNDS: Final = 100
PUT: Final = "etcd_debugging_mvcc_total_put_size_in_bytes"
FILE: Final = "etcd_mvcc_db_total_size_in_bytes"
WRITTEN_MB: Final = 200.0
FULL_NODES: Final = 10_000
"""The target is for this many members or fewer. With more, it grows in proportion."""


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """A hundred rounds of this many nodes."""
    driver.check_descriptors(nodes)
    with (
        etcd() as started,
        driver.served("--ledger", f"{started.endpoint}/writes") as at,
        driver.fleets(plan.processes) as fleets,
    ):
        before = {name: started.metric(name) for name in (PUT, FILE)}
        fleets.connect(at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True)
        for _ in range(ROUNDS - 1):
            fleets.end_round()
            fleets.ask("meet")
        put_bytes, file_bytes = (started.metric(name) - before[name] for name in (PUT, FILE))
        fleets.ask("disconnect")
    target = Target(WRITTEN_MB * max(1.0, nodes / FULL_NODES))
    about = f"{ROUNDS} rounds of {nodes:,} members"
    columns = (
        Column(
            "written", "MB", f"{about}: bytes of keys and values that were put into etcd", target
        ),
        Column(
            "etcd's file",
            "MB",
            f"{about}: by how much etcd's file has grown, without compaction",
            target,
        ),
    )
    return figures_of("ledger-writes", nodes, columns, [(put_bytes / MB, file_bytes / MB)])
