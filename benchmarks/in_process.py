"""Many nodes in one process: regrouping, the store and barriers. For information: no targets."""

from __future__ import annotations

from typing import Final

from benchmarks.figure import Figure, Group
from benchmarks.processes import Coordinator, Say, free_port, run_part

OPS: Final = 1_000


def measure_regroup(repeats: int, say: Say) -> list[Figure]:
    """One of many leaves; all others have their next world."""
    figures = []
    for nodes in (64, 256):
        endpoint = f"127.0.0.1:{free_port()}"
        lines = run_part("in_process_part", "regroup", nodes, endpoint, repeats)
        say(f"regroup of {nodes}")
        figures.append(
            Figure(
                name=f"regroup_{nodes}_after_leave",
                timed=f"{nodes} nodes of rallypoint.aio and their embedded coordinator in one "
                "process and one event loop; one calls leave(), the others ask for the next world "
                "when they are told; from that call to the last World (one node fewer each time)",
                unit="ms",
                values=tuple(each["ms"] for each in lines),
                limited_by="settle_s (50 ms), then one Python thread for all nodes",
            )
        )
    return figures


def measure_store(repeats: int, say: Say) -> list[Figure]:
    """One caller that waits for each answer; 64 at once; and a barrier."""
    with Coordinator() as coordinator:
        alone = run_part("in_process_part", "store", 1, coordinator.endpoint, repeats, OPS)
        say("store, one caller")
        together = run_part(
            "in_process_part", "store_together", 64, coordinator.endpoint, repeats, 50
        )
        say("store, 64 callers")
        barrier = run_part("in_process_part", "barrier", 64, coordinator.endpoint, repeats)
        say("barrier of 64")
    where = "nodes in one process, `rallypoint serve` in another"
    return [
        Figure(
            name="store_1_caller",
            timed=f"{OPS} store.set() of 8 bytes, one after another through the blocking API; "
            "the coordinator is another process",
            unit="ops/s",
            values=tuple(each["ops_per_s"] for each in alone),
            limited_by="two thread switches and two process switches for each call",
        ),
        Figure(
            name="store_64_callers",
            timed=f"64 {where}: each calls store.add() 50 times, one after another",
            unit="ops/s",
            values=tuple(each["ops_per_s"] for each in together),
            limited_by="the one Python thread of the 64 nodes, and the coordinator's",
        ),
        Figure(
            name="barrier_64",
            timed=f"64 {where}: from the first call of barrier() to the last return",
            unit="ms",
            values=tuple(each["ms"] for each in barrier),
            limited_by="the one Python thread of the 64 nodes",
        ),
    ]


GROUPS: Final = (Group("regroup", 5, measure_regroup), Group("store", 5, measure_store))
