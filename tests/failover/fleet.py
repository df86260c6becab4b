"""Coordinators and agents as real processes, what they wrote down, and what must be true of it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rallypoint.clock import StallProofClock
from rallypoint.wire.headers import ONLY_OWN
from tests.agent.processes import Machine, Process
from tests.ports import free_port
from tests.waiting import wait_until

HERE = Path(__file__).parent
AGENT = HERE / "logged_agent.py"
WORKER = HERE / "counting_worker.py"
SERVES_WITHIN_S = 14.0
"""The default `lease_ttl` is 5 s, and these bear some pauses of this machine: they hold for a lease
that runs out. Where an owner is succeeded at once, a test sets a much longer one."""
ALL_WITHIN_S = 20.0
PATIENCE_S = 60.0
"""For what has no bound of its own, on a machine that does much else."""

Event = dict[str, Any]
T = TypeVar("T")


class Log:
    """Lines of JSON that others append to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0
        self._events: list[Event] = []

    def events(self, kind: str, since_s: float = 0.0, **wanted: object) -> list[Event]:
        self._read()
        return [
            each
            for each in self._events
            if each["event"] == kind
            and each["at_s"] >= since_s
            and all(each[name] == value for name, value in wanted.items())
        ]

    def all(self) -> list[Event]:
        """Every line, in the order of the file."""
        self._read()
        return self._events

    def _read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self._events += [json.loads(line) for line in whole.splitlines()]


class Replica:
    """One `rallypoint serve --ledger`, or a program that is one with a fault in it."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port

    @property
    def is_alive(self) -> bool:
        return self.process.popen.poll() is None

    def picture(self, run_id: str, timeout_s: float = 2.0) -> Event | None:
        """What it says of the run; None if it has not got it, or does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        # It may end while it answers.
        no_answer = (OSError, http.client.HTTPException)
        with contextlib.closing(connection), contextlib.suppress(*no_answer):
            connection.request("GET", f"/api/v1/runs/{run_id}", headers={ONLY_OWN: "1"})
            answer = connection.getresponse()
            if answer.status == 200:
                picture: Event = json.loads(answer.read())
                return picture if picture["source"] == "coordinator" else None
        return None


class Agent:
    """One `rallypoint run` with one counting worker."""

    def __init__(self, name: str, process: Process, log: Log) -> None:
        self.name = name
        self.process = process
        self.log = log

    @property
    def is_alive(self) -> bool:
        return self.process.popen.poll() is None

    def first(self, kind: str, since_s: float = 0.0, **wanted: object) -> Event | None:
        found = self.log.events(kind, since_s, **wanted)
        return found[0] if found else None

    def last(self, kind: str) -> Event:
        return self.log.events(kind)[-1]

    def kill_with_worker(self) -> None:
        """As when a machine is lost."""
        self.process.signal(signal.SIGKILL)
        self.process.popen.wait()


class Fleet:
    """One run's coordinators and agents. `ledger` is what `serve --ledger` takes, if any."""

    def __init__(self, folder: Path, ledger: str, endpoint: str, run_id: str = "job") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.machine = Machine(folder)
        self.folder = folder
        self.ledger = ledger
        self.endpoint = endpoint
        self.run_id = run_id
        self.replicas: list[Replica] = []
        self.agents: list[Agent] = []
        self.pause = folder / "pause"
        self.fail = folder / "fail"

    # -- starting ------------------------------------------------------------------------------

    def serve(
        self, program: Sequence[str] = (), port: int | None = None, *, wait: bool = True
    ) -> Replica:
        """A coordinator, once it listens. `program`: instead of `rallypoint`, what to run."""
        # Not one that the system gives to connections: it has yet to start, and may be killed.
        port = port or free_port()
        code = ("-c", "from rallypoint.cli.main import main; main()")
        name = f"replica{len(self.replicas)}"
        argv = [sys.executable, *(program or code), "serve", "--port", str(port)]
        process = self._process([*argv, "--ledger", self.ledger], name, {})
        if wait:
            process.line("is ready at")
        replica = Replica(process, port)
        self.replicas.append(replica)
        return replica

    def start(
        self, count: int, nnodes: str | None = None, *options: str, **env: str
    ) -> list[Agent]:
        """More agents, all at once."""
        names = [f"node{len(self.agents) + more}" for more in range(count)]
        return [self.start_as(name, nnodes or str(count), *options, **env) for name in names]

    def start_as(self, name: str, nnodes: str, *options: str, **env: str) -> Agent:
        """One more agent, of this name, which one that is gone may have had."""
        log = Log(self.folder / f"{name}.{len(self.agents)}.jsonl")
        argv = [sys.executable, str(AGENT), "run", "--node-name", name]
        argv += ["--nnodes", nnodes, "--endpoint", self.endpoint]
        argv += ["--run-id", self.run_id, *options]
        argv += [str(WORKER), str(self.pause), str(self.fail)]
        process = self._process(argv, name, {"FAILOVER_LOG": str(log.path), **env})
        self.agents.append(Agent(name, process, log))
        return self.agents[-1]

    def _process(self, argv: list[str], name: str, env: dict[str, str]) -> Process:
        process = Process(argv, self.machine.env | env, self.folder, name)
        self.machine.processes.append(process)
        return process

    def close(self) -> None:
        self.machine.close()

    # -- present nodes -------------------------------------------------------------------------

    @property
    def living(self) -> list[Agent]:
        return [agent for agent in self.agents if agent.is_alive]

    def owner(self) -> Replica:
        """The coordinator that has the nodes."""
        return self._owner()[0]

    def _owner(self) -> tuple[Replica, Event]:
        """And what it says of the run."""

        def look() -> list[tuple[Replica, Event]]:
            pictures = [r.picture(self.run_id) if r.is_alive else None for r in self.replicas]
            told = zip(self.replicas, pictures, strict=True)
            found = [(each, said) for each, said in told if said and said["attached"]]
            return found if len(found) == 1 else []

        return wait_until(look, PATIENCE_S)[0]

    def status(self) -> Event:
        """What `rallypoint status` has for it."""
        return self._owner()[1]

    def is_in_phase(self, phase: str) -> Event:
        """Wait until the run is in this phase; what is said of it then."""

        def look() -> Event | None:
            status = self.status()
            return status if status["phase"] == phase else None

        found = self.wait(look)
        assert found is not None
        return found

    def at_work(self, round: int, agents: Iterable[Agent] | None = None) -> list[Event]:
        """Wait until these agents' workers are in the round; what they said then."""
        those = list(self.living if agents is None else agents)
        self.wait(lambda: all(each.first("working", round=round) for each in those))
        return [each.log.events("working", round=round)[-1] for each in those]

    def in_one_round(self) -> list[Event]:
        """What all living nodes said last, if they, and no others, are in one round; else none."""
        said = [agent.log.events("working") for agent in self.living]
        told = [each[-1] for each in said if each]
        is_one = len({each["round"] for each in told}) == 1
        return told if is_one and all(e["size"] == len(said) == len(told) for e in told) else []

    def all_in_one_round(self) -> list[Event]:
        """Wait until that is so; what they said.

        A node that comes a moment later than the others is admitted in one more round.
        """
        return self.wait(self.in_one_round)

    def wait(self, what: Callable[[], T], within_s: float = PATIENCE_S) -> T:
        try:
            return wait_until(what, within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None

    def told(self) -> str:
        """The last lines of all agents, for the reader of a failure."""
        those = [r.process for r in self.replicas] + [a.process for a in self.agents]
        return "\n".join(f"-- {p.name}\n" + "\n".join(p.lines[-12:]) for p in those)

    # -- what must be true ---------------------------------------------------------------------

    def all_attached_since(
        self,
        since_s: float,
        agents: Iterable[Agent] | None = None,
        within_s: float = PATIENCE_S,
    ) -> tuple[float, float]:
        """Wait until all are attached again; when the first and the last one were, in seconds.

        Without those in which nothing ran here: they are the machine's.
        """
        those = list(self.living if agents is None else agents)
        clock = StallProofClock()

        def are_attached() -> bool:
            clock.now_s()
            return all(each.first("attached", since_s) for each in those)

        self.wait(are_attached, within_s)
        times = [e["at_s"] - since_s for a in those if (e := a.first("attached", since_s))]
        return min(times) - clock.stalled_s, max(times) - clock.stalled_s

    def counts_since(self, since_s: float, agents: Iterable[Agent] | None = None) -> None:
        """Wait until a write of each that was asked for after this moment is acknowledged."""
        those = list(self.living if agents is None else agents)

        def has_counted(agent: Agent) -> bool:
            asked = agent.first("asked", since_s)
            return asked is not None and agent.first("added", asked["at_s"]) is not None

        self.wait(lambda: all(map(has_counted, those)))

    def check_counter(self, round: int) -> int:
        """R10, R11: every acknowledged write is there once. Returns how many there were."""
        paused_s = time.monotonic()
        self.pause.touch()
        try:
            those = self.living
            self.wait(lambda: all(each.first("paused", paused_s) for each in those))
            values = sorted(
                e["value"] for a in self.agents for e in a.log.events("added", round=round)
            )
            twice = [value for value, times in Counter(values).items() if times > 1]
            assert not twice, f"counted back: {twice[:10]}"
            if all(agent.is_alive for agent in self.agents):
                # Nothing is under way, so what was acknowledged is all there is.
                assert values == list(range(1, len(values) + 1)), "a write was lost or made twice"
            for agent in self.agents:
                own = [e["value"] for e in agent.log.events("added", round=round)]
                assert own == sorted(own), f"{agent.name} was told a lower value than before"
        finally:
            self.pause.unlink()
        return len(values)

    def check_rounds(self) -> None:
        """R1, R2, R13: one member table for a number; tokens grow on every worker and node."""
        tables: dict[int, tuple[str, ...]] = {}
        for agent in self.agents:
            told = agent.log.events("working")
            for each in told:
                table = tuple(each["members"])
                assert tables.setdefault(each["round"], table) == table
            for kind in ("working", "formed"):
                tokens = [(e["term"], e["round"]) for e in agent.log.events(kind)]
                assert all(a < b for a, b in itertools.pairwise(tokens)), tokens

    def worker_pids(self) -> list[int]:
        return [agent.last("working")["pid"] for agent in self.living]
