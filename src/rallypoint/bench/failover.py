"""How soon another coordinator serves a run that has lost its own, and all nodes are attached.

Two `rallypoint serve` replicas over one ledger, and real nodes, as they have to find the next
coordinator by themselves. The round goes on meanwhile: should one end, nothing was measured.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from rallypoint.bench import coordinator_api
from rallypoint.bench.driver import Plan, Process
from rallypoint.bench.etcd import etcd
from rallypoint.bench.figure import Figure, Target
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
"""Instead of a ledger's place: an etcd of one member that is started for this."""
OVER_TTL_S: Final = 2.0
"""How much longer than the lease's time it may take until all are attached."""
CLEAN_S: Final = 1.0
"""How long it may take after a clean end, for which no lease has to run out."""
TTL_S: Final = DEFAULTS.lease_ttl_s


class Way(msgspec.Struct, frozen=True):
    """How a coordinator is lost, and until when all are to be attached to the next.

    `all_s` None: nothing is promised.
    """

    name: str
    signal: int
    all_s: float | None


WAYS: Final = (
    Way("kill -9", signal.SIGKILL, TTL_S + OVER_TTL_S),
    Way("SIGTERM", signal.SIGTERM, CLEAN_S),
    # Nodes give it up after its silence, and watch the lease from then on.
    Way("SIGSTOP", signal.SIGSTOP, None),
)


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """End the coordinator of so many nodes, again and again: the next replica takes its place."""
    return [figure for way in WAYS for figure in _measure(plan, nodes, way)]


def _measure(plan: Plan, nodes: int, way: Way) -> list[Figure]:
    repeats = min(plan.repeats, REPEATS_MAX)
    with ledger(plan.ledger) as place:
        results = failovers(place, nodes, plan.processes, repeats, way=way)
    about = f"from {way.name} of the coordinator until the {{}} node is attached to the next one"

    def figure(name: str, which: str, values: list[float], target: Target | None) -> Figure:
        return Figure(
            scenario="failover",
            name=f"{way.name}: {name}",
            nodes=nodes,
            unit="s",
            values=tuple(values),
            about=about.format(which),
            target=target,
        )

    last = None if way.all_s is None else Target(way.all_s)
    return [
        figure("the next one serves", "first", [each[0] for each in results], None),
        figure("all are attached", "last", [each[1] for each in results], last),
    ]


@contextlib.contextmanager
def ledger(given: str) -> Iterator[str]:
    """A place in the ledger that nobody has used; with none given, a folder of its own.

    A folder is removed afterwards. What stands in etcd is swept by the next who serves there.
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
    say: Callable[[str], None] = lambda text: None,
    way: Way = WAYS[0],
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
        for index in range(repeats):
            owner = owner_of(serving, groups, nodes)
            results.append(_lose(owner, groups, way))
            serving.remove(owner)
            serving.append(Replica(ledger))
            say(f"failover of {nodes} nodes, {way.name}, {index + 1} of {repeats}")
    return results


@contextlib.contextmanager
def replicas(ledger: str, count: int) -> Iterator[list[Replica]]:
    """So many `rallypoint serve` over the ledger; those that are in the list are ended."""
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
        arguments = ("-m", "rallypoint", "serve", "--port", "0", "--ledger", ledger)
        with tempfile.TemporaryFile() as said:
            self.process = Process(arguments, stderr=said)
            try:
                line = self.process.line("rallypoint serve")
            except BaseException as error:
                end_all([self.process])
                if not isinstance(error, BenchError):
                    raise
                text = tail_of(said) or str(error)
                raise BenchError(f"no coordinator over {ledger}: {text}") from error
        self.port = int(line.decode().strip().rpartition(":")[2])

    def run(self, run_id: str = RUN_ID) -> dict[str, Any] | None:
        """What it says of the run; None if it has not got it. Raises BenchError."""
        runs = coordinator_api.runs(self.port)
        return next((each for each in runs if each["run_id"] == run_id), None)

    def attached(self, run_id: str = RUN_ID) -> int:
        """How many nodes of the run it has. Raises BenchError if it does not answer."""
        run = self.run(run_id)
        return int(run["attached"]) if run is not None else 0


def owner_of(
    serving: list[Replica], groups: list[NodeProcesses], nodes: int, run_id: str = RUN_ID
) -> Replica:
    """The one that has all nodes, once one has."""
    found: list[Replica] = []

    def look() -> bool:
        found[:] = [each for each in serving if each.attached(run_id) == nodes]
        return bool(found)

    wait_until(look, "a coordinator that has all nodes", unless=lambda: problem_of(groups))
    return found[0]


def _lose(owner: Replica, groups: list[NodeProcesses], way: Way) -> tuple[float, float]:
    lost_s = time.monotonic()
    owner.process.signal(way.signal)
    attached = wait_for(groups, "attached", "all nodes attached to the next coordinator", lost_s)
    problem = problem_of(groups)
    if problem:
        raise BenchError(problem)
    owner.process.kill()  # Should it only be stopped, or be about to end.
    owner.process.end()
    times = [float(each["at_s"]) - lost_s for each in attached.values()]
    return min(times), max(times)
