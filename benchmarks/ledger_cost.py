"""The calls of a coordinator to its ledger, an etcd: while its runs are idle, and for a round.

Every call of the ledger is counted (ledger_cost_part.py). How many bytes they are is measured by
`rallypoint bench ledger-reads` and `ledger-writes`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final

from benchmarks.parts import run_part
from rallypoint.bench.etcd import etcd
from rallypoint.bench.figure import Figure, Target

WRITES_PER_S: Final = 1.05
"""At most one call a second; a window of ten seconds may include one at each end."""
CALLS_PER_ROUND: Final = 4
ROUND_MORE_MS: Final = 100
"""By how much a round over etcd may take longer than one over memory."""
WINDOW_S: Final = 10.0
RUNS: Final = (1, 20)
ROUNDS_PER_REPEAT: Final = 5


def measure(repeats: int) -> list[Figure]:
    """Over an etcd of one member, with etcd's own defaults. Raises BenchError without etcd."""
    with etcd() as started:
        place = f"{started.endpoint}/benchmark-{secrets.token_hex(4)}"
        return [*_idle(place, repeats), *_rounds(place, repeats)]


def _idle(place: str, repeats: int) -> Iterator[Figure]:
    for runs in RUNS:
        lines = [
            line
            for _ in range(repeats)
            for line in run_part("ledger_cost_part", "idle", place, runs, WINDOW_S)
        ]
        yield Figure(
            scenario="ledger-cost",
            name=f"writes of {runs} idle runs",
            nodes=2 * runs,
            unit="calls/s",
            values=tuple(each["writes_per_s"] for each in lines),
            about=f"{runs} active runs of two nodes each that do nothing, for {WINDOW_S:g} s: "
            "calls of the ledger that write; the lease is renewed every third of lease_ttl_s",
            target=Target(WRITES_PER_S, worst=True),
        )


def _rounds(place: str, repeats: int) -> Iterator[Figure]:
    rounds = ROUNDS_PER_REPEAT * repeats
    over_etcd = run_part("ledger_cost_part", "rounds", place, rounds)
    over_memory = run_part("ledger_cost_part", "rounds", "memory", rounds)
    where = "two nodes and their coordinator in one process, both ask for their next round"
    yield Figure(
        scenario="ledger-cost",
        name="calls for a round",
        nodes=2,
        unit="calls",
        values=tuple(_calls_of_a_round(each["operations"]) for each in over_etcd),
        about=f"{where}: calls of the ledger for it, without the lease's and the store's batches",
        target=Target(CALLS_PER_ROUND, worst=True),
    )
    memory_ms = sorted(each["ms"] for each in over_memory)[rounds // 2]
    for name, lines in (("memory", over_memory), ("etcd", over_etcd)):
        yield Figure(
            scenario="ledger-cost",
            name=f"a round over {name}",
            nodes=2,
            unit="ms",
            values=tuple(each["ms"] for each in lines),
            about=f"{where}, until both have it",
            target=Target(memory_ms + ROUND_MORE_MS) if name == "etcd" else None,
        )


def _calls_of_a_round(operations: dict[str, int]) -> int:
    return sum(n for name, n in operations.items() if not name.startswith("append"))
