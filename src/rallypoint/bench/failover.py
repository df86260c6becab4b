"""How soon another coordinator serves a run whose coordinator was killed, and all are attached.

Two `rallypoint serve` replicas over one ledger, and real nodes, as they have to find the next
coordinator by themselves. The round goes on meanwhile: should one end, nothing was measured.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rallypoint.bench.driver import Plan, Process
from rallypoint.bench.figure import Figure
from rallypoint.bench.notes import Reader
from rallypoint.bench.processes import (
    ANSWER_S,
    BenchError,
    scratch,
    spread,
    tail_of,
    wait_until,
)
from rallypoint.bench.real_nodes import RUN_ID
from rallypoint.endpoints import FilePlace, parse_endpoint

REPEATS_MAX: Final = 5


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Kill the coordinator of so many nodes, again and again: the next replica takes its place."""
    with ledger(plan.ledger) as place:
        results = failovers(place, nodes, plan.processes, min(plan.repeats, REPEATS_MAX))
    about = "from kill -9 of the coordinator until the {} node is attached to the next one"

    def figure(name: str, which: str, values: list[float]) -> Figure:
        return Figure(
            scenario="failover",
            name=name,
            nodes=nodes,
            unit="s",
            values=tuple(values),
            about=about.format(which),
        )

    return [
        figure("the next one serves", "first", [each[0] for each in results]),
        figure("all are attached", "last", [each[1] for each in results]),
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
) -> list[tuple[float, float]]:
    """Seconds from each kill until the first, and until the last node is attached to another."""
    with scratch() as folder:
        replicas: list[_Replica] = []
        groups: list[_Nodes] = []
        results = []
        try:
            for _ in range(2):
                replicas.append(_Replica(ledger))
            for index, count in enumerate(spread(nodes, processes)):
                groups.append(_Nodes(folder, f"part{index}", count, nodes, ledger))
            _wait(groups, lambda: all(g.notes.all("met") for g in groups), "all nodes in a round")
            for index in range(repeats):
                owner = _owner(replicas, groups, nodes)
                results.append(_kill(owner, groups, nodes))
                replicas = [*(r for r in replicas if r is not owner), _Replica(ledger)]
                say(f"failover of {nodes} nodes, {index + 1} of {repeats}")
        except BenchError as error:
            groups.sort(key=lambda each: not each.problem())
            said = next(filter(None, (each.said() for each in groups)), "")
            raise BenchError(f"{error}\n{said}".strip(), error.hint) from error
        finally:
            _end([*(each.process for each in replicas), *(each.process for each in groups)])
        return results


def _end(processes: list[Process]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.end()


class _Replica:
    """A `rallypoint serve` over the ledger."""

    def __init__(self, ledger: str) -> None:
        arguments = ("-m", "rallypoint", "serve", "--port", "0", "--ledger", ledger)
        with tempfile.TemporaryFile() as said:
            self.process = Process(arguments, stderr=said)
            try:
                line = self.process.line("rallypoint serve")
            except BaseException as error:
                _end([self.process])
                if not isinstance(error, BenchError):
                    raise
                text = tail_of(said) or str(error)
                raise BenchError(f"no coordinator over {ledger}: {text}") from error
        self.port = int(line.decode().strip().rpartition(":")[2])

    def attached(self) -> int:
        """How many nodes of the run it has. Raises BenchError if it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/api/v1/runs")
                runs: list[Any] = json.loads(connection.getresponse().read())["runs"]
            except (OSError, http.client.HTTPException) as error:
                raise BenchError(f"a coordinator does not answer any more: {error}") from error
        return sum(int(each["attached"]) for each in runs if each["run_id"] == RUN_ID)


class _Nodes:
    """A process with some of the run's nodes, and what they have noted."""

    def __init__(self, folder: Path, name: str, count: int, total: int, endpoint: str) -> None:
        path = folder / f"{name}.jsonl"
        self.count = count
        self.notes = Reader(path)
        self._said = folder / f"{name}.txt"
        arguments = ("-m", "rallypoint.bench.real_nodes", str(path), name, str(count), str(total))
        with self._said.open("wb") as said:  # Each node tells of each coordinator that it loses.
            self.process = Process((*arguments, endpoint), stderr=said)

    def said(self) -> str:
        """What its nodes said last."""
        with self._said.open("rb") as said:
            return tail_of(said)

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
        code = self.process.code
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
    owner.process.end()
    times = [at_s - killed_s for g in groups for at_s in g.attached_since(killed_s).values()]
    return min(times), max(times)
