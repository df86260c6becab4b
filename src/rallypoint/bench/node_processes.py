"""Starts processes of real nodes (real_nodes.py), and reads their event log."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.bench.driver import Process
from rallypoint.bench.event_log import EventReader, LoggedEvent
from rallypoint.bench.processes import DEADLINE_S, BenchError, scratch, tail_of, wait_until
from rallypoint.bench.real_nodes import Specification
from rallypoint.settings import NodeSettings, attach_grace_s

PROBLEMS: Final = ("ended", "gone")
DEFAULTS: Final = NodeSettings(run_id="defaults")
"""A node's default settings, such as the lease's time."""
ATTACH_GRACE_S: Final = attach_grace_s(DEFAULTS.attach_grace_s, DEFAULTS.coordinator_silence_s)


class NodeProcesses:
    """The nodes of one specification. `names`: the nodes that were not killed from here."""

    def __init__(self, folder: Path, what: Specification) -> None:
        self.names = list(what.names)
        label = what.names[0]
        self.log = EventReader(folder / f"{label}.jsonl")
        self._said = folder / f"{label}.txt"
        arguments = ("-m", "rallypoint.bench.real_nodes", str(folder / f"{label}.jsonl"))
        with self._said.open("wb") as said:  # Each node logs that it has lost a coordinator.
            specification = msgspec.json.encode(what).decode()
            self.process = Process((*arguments, specification), stderr=said)

    def said(self) -> str:
        """The end of what its nodes have logged on stderr."""
        with self._said.open("rb") as said:
            return tail_of(said)

    def pid(self, name: str) -> int:
        """The pid of the process with this node."""
        return next(int(n["pid"]) for n in self.log.all("pid") if n["name"] == name)

    def first(self, event: str, since_s: float = 0.0) -> dict[str, LoggedEvent]:
        """The first event of this kind of each node since then, by name."""
        found: dict[str, LoggedEvent] = {}
        for each in self.log.all(event, since_s):
            found.setdefault(each["name"], each)
        return found

    def kill(self, names: Iterable[str]) -> float:
        """Send SIGKILL to the processes of these nodes. Returns the time of the first one."""
        gone = list(names)
        self.names = [each for each in self.names if each not in gone]
        return self.signal(gone, signal.SIGKILL)

    def signal(self, names: Iterable[str], number: int) -> float:
        """Send a signal to the processes of these nodes. Returns the time of the first one."""
        pids = dict.fromkeys(self.pid(name) for name in names)
        began_s = time.monotonic()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return began_s

    def problem(self) -> str:
        """Why a wait cannot succeed any more; "" while it can."""
        for event in PROBLEMS:
            for each in self.log.all(event):
                if each["name"] in self.names:
                    what = "its round has ended" if event == "ended" else "it gave up"
                    return f"of {each['name']}: {what}: {each['why']}"
        code = self.process.code
        return "" if code is None else f"a process of nodes ended with exit code {code}"


@contextlib.contextmanager
def node_processes(*specifications: Specification) -> Iterator[list[NodeProcesses]]:
    """Start processes of nodes, which are killed with the block.

    A BenchError within the block is raised again with the end of what the nodes logged.
    """
    with scratch() as folder:
        groups: list[NodeProcesses] = []
        try:
            for each in specifications:
                groups.append(NodeProcesses(folder, each))
            yield groups
        except BenchError as error:
            raise BenchError(f"{error}\n{said_by(groups)}".strip(), error.hint) from error
        finally:
            end_all(each.process for each in groups)


def said_by(groups: list[NodeProcesses]) -> str:
    """The end of what one group of nodes logged; a group with a problem comes first."""
    groups = sorted(groups, key=lambda each: not each.problem())
    return next(filter(None, (each.said() for each in groups)), "")


def end_all(processes: Iterable[Process]) -> None:
    """Kill them all, then wait for each."""
    all_ = list(processes)
    for process in all_:
        process.kill()
    for process in all_:
        process.end()


def wait_for(
    groups: list[NodeProcesses],
    event: str,
    waited_for: str,
    since_s: float = 0.0,
    within_s: float = DEADLINE_S,
    only: Callable[[LoggedEvent], bool] = lambda each: True,
) -> dict[str, LoggedEvent]:
    """Wait until every living node has logged this event. Returns the first one of each.

    `only`: count events of which this is true. Raises BenchError as soon as a node has given up.
    """

    def of(group: NodeProcesses) -> dict[str, LoggedEvent]:
        found: dict[str, LoggedEvent] = {}
        for each in group.log.all(event, since_s):
            if only(each):
                found.setdefault(each["name"], each)
        return found

    def are_there() -> bool:
        return all(set(group.names) <= set(of(group)) for group in groups)

    wait_until(are_there, waited_for, within_s, lambda: problem_of(groups))
    return {
        name: note for group in groups for name, note in of(group).items() if name in group.names
    }


def wait_for_round(groups: list[NodeProcesses], since_s: float, within_s: float) -> float:
    """Wait until exactly the living nodes are in one round. Returns when the last one was."""
    left = sum(len(group.names) for group in groups)
    formed = wait_for(
        groups,
        "formed",
        "all survivors in one round",
        since_s,
        within_s,
        only=lambda each: each["nodes"] == left,
    )
    return last_s(formed)


def last_s(events: dict[str, LoggedEvent]) -> float:
    """The time of the last of these events."""
    return max(float(each["at_s"]) for each in events.values())


def problem_of(groups: list[NodeProcesses]) -> str:
    """The first problem of any of them; "" if there is none."""
    return next((text for text in (each.problem() for each in groups) if text), "")


def names(prefix: str, first: int, count: int) -> tuple[str, ...]:
    """Names in the order of their numbers, which is the order of the first round's ranks."""
    return tuple(f"{prefix}{number:04}" for number in range(first, first + count))
