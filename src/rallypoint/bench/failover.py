"""How soon after the loss of its coordinator all nodes of a run are attached to another one.

There are two `rallypoint serve` replicas over one ledger. The nodes are real ones, because they
have to find the next coordinator by themselves. The round continues meanwhile. If a round ends,
that is an error, and there is no figure.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from rallypoint.bench import coordinator_api
from rallypoint.bench.driver import Plan, port_of, start_serve
from rallypoint.bench.etcd import etcd
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.node_processes import (
    DEFAULTS,
    NodeProcesses,
    end_all,
    names,
    node_processes,
    problem_of,
    wait_for,
)
from rallypoint.bench.processes import BenchError, scratch, tail_of, wait_until
from rallypoint.bench.real_nodes import RUN_ID, Specification
from rallypoint.endpoints import FilePlace, parse_endpoint

REPEATS_MAX: Final = 5
ETCD: Final = "etcd"
"""Used in place of a ledger's place: an etcd of one member is started."""
KILLED_S: Final = 2.0
"""How many seconds it may take until all are attached, if the process was killed."""
CLEAN_S: Final = 1.0
"""How many seconds it may take after a clean end, when no lease has to expire."""
TTL_S: Final = DEFAULTS.lease_ttl_s


class Way(msgspec.Struct, frozen=True):
    """A way to lose a coordinator, and the time limit until all nodes are attached to the next one.

    `all_s` None: there is no target.
    """

    name: str
    signal: int
    all_s: float | None


WAYS: Final = (
    # Its port refuses connections, so no lease has to expire.
    Way("kill -9", signal.SIGKILL, KILLED_S),
    Way("SIGTERM", signal.SIGTERM, CLEAN_S),
    # Nodes drop it after `coordinator_silence_s`, and watch the lease only from then on.
    Way("SIGSTOP", signal.SIGSTOP, None),
)


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """End the coordinator of this many nodes repeatedly; the next replica takes its place."""
    return [figure for way in WAYS for figure in _measure(plan, nodes, way)]


def _measure(plan: Plan, nodes: int, way: Way) -> list[Figure]:
    about = f"from {way.name} of the coordinator until the {{}} node is attached to the next one"
    columns = (
        Column(f"{way.name}: the next one serves", "s", about.format("first")),
        Column(
            f"{way.name}: all are attached",
            "s",
            about.format("last"),
            None if way.all_s is None else Target(way.all_s),
        ),
    )
    with ledger(plan.ledger) as place:
        repeats = min(plan.repeats, REPEATS_MAX)
        results = failovers(place, nodes, plan.processes, repeats, way)
    return figures_of("failover", nodes, columns, results)


@contextlib.contextmanager
def ledger(given: str) -> Iterator[str]:
    """An unused place in the given ledger; by default, a new folder.

    A folder is removed afterwards. The next coordinator on an etcd collects the rest there.
    """
    if not given:
        with scratch() as folder:
            yield f"file://{folder}"
        return
    if given == ETCD:
        with etcd() as started, ledger(started.endpoint) as inside:
            yield inside
        return
    where, question, options = given.partition("?")
    own = f"{where.rstrip('/')}/bench-{secrets.token_hex(4)}{question}{options}"
    try:
        yield own
    finally:
        place = parse_endpoint(own).place
        if isinstance(place, FilePlace):
            shutil.rmtree(place.folder, ignore_errors=True)


def failovers(
    ledger: str,
    nodes: int,
    processes: int,
    repeats: int,
    way: Way,
) -> list[tuple[float, float]]:
    """Seconds from each loss until the first, and until the last node is attached to another."""
    what = Specification(
        endpoint=ledger,
        names=names("node", 0, nodes),
        per_process=math.ceil(nodes / processes),
        min_nodes=nodes,
        max_nodes=nodes,
    )
    results = []
    with replicas(ledger, 2) as serving, node_processes(what) as groups:
        wait_for(groups, "met", "all nodes in a round")
        for _ in range(repeats):
            owner = owner_of(serving, groups, nodes)
            results.append(_lose(owner, groups, way))
            serving.remove(owner)
            serving.append(Replica(ledger))
    return results


@contextlib.contextmanager
def replicas(ledger: str, count: int) -> Iterator[list[Replica]]:
    """This many `rallypoint serve` over the ledger. Those in the list are ended with the block."""
    started: list[Replica] = []
    try:
        for _ in range(count):
            started.append(Replica(ledger))
        yield started
    finally:
        end_all(each.process for each in started)


class Replica:
    """A `rallypoint serve` over the ledger."""

    def __init__(self, ledger: str) -> None:
        with tempfile.TemporaryFile() as said:
            try:
                self.process, endpoint = start_serve("--ledger", ledger, stderr=said)
            except BenchError as error:
                text = tail_of(said) or str(error)
                raise BenchError(f"no coordinator over {ledger}: {text}") from error
        self.port = port_of(endpoint)

    def run(self, run_id: str = RUN_ID) -> dict[str, Any] | None:
        """Its answer about the run; None if it does not own the run. Raises BenchError."""
        runs = coordinator_api.runs(self.port)
        return next((each for each in runs if each["run_id"] == run_id), None)

    def attached(self, run_id: str = RUN_ID) -> int:
        """How many nodes of the run are attached to it. Raises BenchError if it does not answer."""
        run = self.run(run_id)
        return int(run["attached"]) if run is not None else 0


def owner_of(
    serving: list[Replica], groups: list[NodeProcesses], nodes: int, run_id: str = RUN_ID
) -> Replica:
    """Wait for the replica to which all nodes are attached. Raises BenchError."""
    found: list[Replica] = []

    def look() -> bool:
        found[:] = [each for each in serving if each.attached(run_id) == nodes]
        return bool(found)

    wait_until(
        look, "a coordinator to which all nodes are attached", unless=lambda: problem_of(groups)
    )
    return found[0]


def _lose(owner: Replica, groups: list[NodeProcesses], way: Way) -> tuple[float, float]:
    lost_s = time.monotonic()
    owner.process.signal(way.signal)
    attached = wait_for(groups, "attached", "all nodes attached to the next coordinator", lost_s)
    problem = problem_of(groups)
    if problem:
        raise BenchError(problem)
    owner.process.kill()  # The replica may be stopped, or about to end.
    owner.process.end()
    times = [float(each["at_s"]) - lost_s for each in attached.values()]
    return min(times), max(times)
