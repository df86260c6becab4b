"""How soon another coordinator serves a run whose coordinator was killed, and all are attached.

Two `rallypoint serve` replicas over one ledger, and real nodes, as they have to find the next
coordinator by themselves. The round goes on meanwhile: should one end, nothing was measured.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rallypoint.bench.driver import Plan
from rallypoint.bench.figure import Figure
from rallypoint.bench.notes import Reader
from rallypoint.bench.processes import (
    DEADLINE_S,
    BenchError,
    clean_environment,
    end,
    wait_until,
)
from rallypoint.bench.real_nodes import RUN_ID

REPEATS_MAX: Final = 5


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Kill the coordinator of so many nodes, again and again: the next replica takes its place."""
    with ledger(plan.ledger) as place:
        results = failovers(place, nodes, plan.processes, min(plan.repeats, REPEATS_MAX))
    about = "from kill -9 of the coordinator until the {} node is attached to the next one"

    def figure(name: str, unit: str, about: str, values: list[float]) -> Figure:
        return Figure(
            scenario="failover",
            name=name,
            nodes=nodes,
            unit=unit,
            values=tuple(values),
            about=about,
        )

    return [
        figure("the next one serves", "s", about.format("first"), [each[0] for each in results]),
        figure("all are attached", "s", about.format("last"), [each[1] for each in results]),
        figure("rounds broken", "rounds", "else this would be an error", [0.0]),
    ]


@contextlib.contextmanager
def ledger(given: str) -> Iterator[str]:
    """A place in the ledger that nobody has used; with none given, a folder of its own."""
    if given:
        place, question, options = given.partition("?")
        yield f"{place.rstrip('/')}/bench-{secrets.token_hex(4)}{question}{options}"
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            yield f"file://{folder}"


def failovers(
    ledger: str,
    nodes: int,
    processes: int,
    repeats: int,
    say: Callable[[str], None] = lambda text: None,
) -> list[tuple[float, float]]:
    """Seconds from each kill until the first, and until the last node is attached to another."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        replicas: list[_Replica] = []
        groups: list[_Nodes] = []
        results = []
        try:
            replicas += (_Replica(ledger) for _ in range(2))
            share, more = divmod(nodes, processes)
            for index in range(processes):
                count = share + (index < more)
                groups.append(_Nodes(Path(folder), f"part{index}", count, nodes, ledger))
            _wait(groups, lambda: all(g.notes.all("met") for g in groups), "all nodes in a round")
            for index in range(repeats):
                owner = _owner(replicas, groups, nodes)
                results.append(_kill(owner, groups, nodes))
                replicas = [*(r for r in replicas if r is not owner), _Replica(ledger)]
                say(f"failover of {nodes} nodes, {index + 1} of {repeats}")
        finally:
            end([*(each.process for each in replicas), *(each.process for each in groups)])
        return results


class _Replica:
    """A `rallypoint serve` over the ledger."""

    def __init__(self, ledger: str) -> None:
        with tempfile.TemporaryFile() as said:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-m", "rallypoint", "serve", "--port", "0", "--ledger", ledger],
                env=clean_environment(),
                stdout=subprocess.PIPE,
                stderr=said,
            )
            assert self.process.stdout is not None
            line = self.process.stdout.readline()  # It prints where it listens, or ends.
            if not line:
                end([self.process])
                said.seek(0)
                text = said.read().decode("utf-8", "replace").strip()
                raise BenchError(f"no coordinator over {ledger}: {text}")
        self.port = int(line.decode().strip().rpartition(":")[2])

    def attached(self) -> int:
        """How many nodes of the run it has."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            connection.request("GET", "/api/v1/runs")
            runs: list[Any] = json.loads(connection.getresponse().read())["runs"]
        return sum(int(each["attached"]) for each in runs if each["run_id"] == RUN_ID)


class _Nodes:
    """A process with some of the run's nodes, and what they have noted."""

    def __init__(self, folder: Path, name: str, count: int, total: int, endpoint: str) -> None:
        path = folder / f"{name}.jsonl"
        self.count = count
        self.notes = Reader(path)
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [
                *(sys.executable, "-m", "rallypoint.bench.real_nodes", str(path)),
                *(name, str(count), str(total), endpoint),
            ],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
        )

    def attached_since(self, since_s: float) -> dict[str, float]:
        """When each of its nodes was first attached since then, by name."""
        first: dict[str, float] = {}
        for each in self.notes.all("attached", since_s):
            first.setdefault(each["name"], each["at_s"])
        return first

    def problem(self) -> str:
        """Why nothing more will come of it, if that is so."""
        if self.notes.all("ended"):
            return "the round has ended, or a node gave up"
        code = self.process.poll()
        return "" if code is None else f"a process of nodes ended with exit code {code}"


def _wait(groups: list[_Nodes], what: Callable[[], bool], waited_for: str) -> None:
    def problem() -> str:
        return next((text for text in (each.problem() for each in groups) if text), "")

    wait_until(what, waited_for, unless=problem)


def _owner(replicas: list[_Replica], groups: list[_Nodes], nodes: int) -> _Replica:
    """The one that has all nodes, once one has."""
    found: list[_Replica] = []

    def look() -> bool:
        found[:] = [each for each in replicas if each.attached() == nodes]
        return bool(found)

    _wait(groups, look, "a coordinator that has all nodes")
    return found[0]


def _kill(owner: _Replica, groups: list[_Nodes], nodes: int) -> tuple[float, float]:
    killed_s = time.monotonic()
    owner.process.kill()
    _wait(
        groups,
        lambda: all(len(each.attached_since(killed_s)) == each.count for each in groups),
        f"all {nodes} nodes attached to the next coordinator",
    )
    for problem in filter(None, (each.problem() for each in groups)):
        raise BenchError(problem)
    end([owner.process])
    times = [at_s - killed_s for g in groups for at_s in g.attached_since(killed_s).values()]
    return min(times), max(times)
