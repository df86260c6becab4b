"""The effects of an attacker without a token on the runs of a coordinator.

The attacker has a few connections to a coordinator (stranger.py). In the same time, nodes of a run
at that coordinator send their heartbeats, and new nodes attach. Nodes of a second coordinator,
which is not attacked, do the same. One process has the nodes of both, so that other load on the
machine delays them alike, and the difference is the effect of the attack.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.meet import settings
from rallypoint.bench.processes import DEADLINE_S, scratch

CONNECTIONS: Final = 8
HEARTBEAT_MS: Final = 100.0
"""By how much the 99.9th percentile of the heartbeats' round trips may be above the control's."""
MEMORY_MIB: Final = 64.0
"""By how much the coordinator's memory may grow."""
ATTACH_EVERY_S: Final = 0.25
LOOK_S: Final = 0.1
HEARTBEAT: Final = "heartbeat, p99.9 over the control's"
MEMORY: Final = "memory that the stranger takes"
NOT_ATTACHED: Final = "nodes that could not attach"


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """This many nodes at each of two coordinators, and an attack on one, for `plan.seconds`."""
    driver.check_descriptors(2 * nodes)
    with (
        _guarded(plan.place) as attacked,
        _guarded(plan.place) as control,
        driver.fleets(1) as fleets,
    ):
        [fleet] = fleets.each
        runs = {plan.run_id(): attacked, plan.run_id(): control}
        for run_id, at in runs.items():
            fleets.connect(at, run_id=run_id, nodes=nodes, settings=settings(nodes), ready=True)
        fleets.ask("settle")
        with _looked_at(attacked) as seen:
            fleet.send("watch", seconds=plan.seconds, places=_places(runs), every_s=ATTACH_EVERY_S)
            opened = _attack(attacked, plan.seconds)
            answer = fleet.receive()
        fleets.ask("disconnect")
    return _figures(nodes, list(runs), answer, seen, opened)


def _places(runs: dict[str, driver.Coordinator]) -> dict[str, dict[str, Any]]:
    return {
        run_id: {"host": at.address.host, "port": at.address.port, "token": at.token}
        for run_id, at in runs.items()
    }


@contextlib.contextmanager
def _guarded(place: str) -> Iterator[driver.Coordinator]:
    """A coordinator that requires a token."""
    with scratch() as folder:
        token = secrets.token_hex(16)
        path = folder / "token"
        path.touch(0o600)
        path.write_text(token)
        made = driver.embedded if place == "embedded" else driver.served
        with made("--token-file", str(path)) as at:
            at.token = token
            yield at


def _attack(at: driver.Coordinator, seconds: float) -> dict[str, int]:
    """Run the attack; how often it has connected in each way."""
    where = (at.address.host, str(at.address.port), str(seconds), str(CONNECTIONS))
    stranger = driver.Process(("-m", "rallypoint.bench.stranger", *where))
    try:
        line = stranger.line("the stranger", "its last word", seconds + DEADLINE_S)
        opened: dict[str, int] = json.loads(line)
        return opened
    finally:
        stranger.end()


class _Seen:
    """A coordinator's resource usage, read repeatedly: bytes of memory, descriptors, CPU seconds.

    The first value of each is from before the attack.
    """

    def __init__(self, process: driver.Process) -> None:
        self._process = process
        self.memory: list[int] = []
        self.descriptors: list[int] = []
        self.cpu_s: list[float] = []

    def look(self) -> None:
        usage = self._process.usage()
        self.memory.append(usage.memory_bytes)
        self.cpu_s.append(usage.cpu_s)
        self.descriptors.append(len(list(Path(f"/proc/{self._process.pid}/fd").iterdir())))


@contextlib.contextmanager
def _looked_at(at: driver.Coordinator) -> Iterator[_Seen]:
    assert at.process is not None
    seen, is_over = _Seen(at.process), threading.Event()
    seen.look()

    def look() -> None:
        while not is_over.wait(LOOK_S):
            seen.look()

    looking = threading.Thread(target=look, name="bench-look", daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        is_over.set()
        looking.join()
    seen.look()


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


def _figures(
    nodes: int, runs: list[str], answer: dict[str, Any], seen: _Seen, opened: dict[str, int]
) -> list[Figure]:
    attacked, control = runs

    def figure(
        name: str, unit: str, about: str, value: float, target: Target | None = None
    ) -> Figure:
        return Figure(
            scenario="strangers",
            name=name,
            nodes=nodes,
            unit=unit,
            values=(value,),
            about=about,
            target=target,
        )

    beats = {run: [1e3 * each for each in answer["round_trips_s"][run]] for run in runs}
    attach = {run: [1e3 * each for each in answer["attach_s"][run]] for run in runs}
    for run in runs:
        if not attach[run]:
            raise driver.BenchError("no new node could attach in all that time")
    worst = {run: percentile(beats[run], 0.999) for run in runs}
    count = len(beats[attacked])
    grown_mib = (max(seen.memory) - seen.memory[0]) / 2**20
    return [
        figure(
            HEARTBEAT,
            "ms",
            f"a node's heartbeat until its answer, {count} of them; minus the same at a "
            "coordinator that is not attacked, in the same time and process",
            worst[attacked] - worst[control],
            Target(HEARTBEAT_MS),
        ),
        figure("heartbeat, p99.9", "ms", "the attacked coordinator", worst[attacked]),
        figure("heartbeat, p99.9, control", "ms", "the other one", worst[control]),
        figure(
            MEMORY,
            "MiB",
            "the attacked coordinator's largest memory in that time, minus that before",
            grown_mib,
            Target(MEMORY_MIB),
        ),
        figure(
            NOT_ATTACHED,
            "nodes",
            f"of {answer['tried'][attacked]} that tried at the attacked coordinator, one each "
            f"{ATTACH_EVERY_S} s",
            answer["tried"][attacked] - len(attach[attacked]),
            Target(0),
        ),
        figure("attach, p99", "ms", "from connecting on", percentile(attach[attacked], 0.99)),
        figure("attach, p99, control", "ms", "the other one", percentile(attach[control], 0.99)),
        figure(
            "descriptors",
            "files",
            "the most that the attacked coordinator had open, beyond those before",
            max(seen.descriptors) - seen.descriptors[0],
        ),
        figure(
            "CPU", "s", "of the attacked coordinator in that time", seen.cpu_s[-1] - seen.cpu_s[0]
        ),
        figure(
            "times that the stranger connected",
            "times",
            ", ".join(f"{name}: {number}" for name, number in sorted(opened.items())),
            sum(opened.values()),
        ),
    ]
