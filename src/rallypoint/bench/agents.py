"""Real `rallypoint run` agents with one worker each; all of them write an event log."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from rallypoint.bench.event_log import EventReader, LoggedEvent
from rallypoint.bench.processes import (
    DEADLINE_S,
    BenchError,
    clean_environment,
    end,
    kill_tree,
    scratch,
    start,
    tail_of,
    wait_until,
)
from rallypoint.endpoints import EndpointKind, parse_endpoint

PLAIN: Final = "rallypoint.bench.plain_worker"
DDP: Final = "rallypoint.bench.ddp_worker"
KEPT_DDP: Final = "rallypoint.bench.kept_ddp_worker"
AGENTS_MIN: Final = 3
AGENTS_MAX: Final = 64
"""Each node is an agent, its guard and a worker: three Python processes of this machine."""


class Agent:
    """One `rallypoint run` with one worker."""

    env: ClassVar[dict[str, str]] = {}
    """What the agent and its worker get besides."""

    def __init__(
        self, name: str, folder: Path, arguments: Sequence[str], worker: str, token: str
    ) -> None:
        self.name = name
        self._is_killed = False
        log = folder / f"{name}.jsonl"
        self._log = EventReader(log)
        self._said = folder / f"{name}.txt"
        own = {"RALLYPOINT_TOKEN": token} if token else {}
        command = self._command(name, str(log), arguments)
        with self._said.open("wb") as said:
            self.process = start(
                (*command, "-m", worker, str(log)),
                env=clean_environment(TMPDIR=str(folder), **own, **self.env),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    @staticmethod
    def shared(nnodes: str, endpoint: str, run_id: str) -> tuple[str, ...]:
        """The options that all agents of a job have."""
        return ("--nnodes", nnodes, "--endpoint", endpoint, "--run-id", run_id)

    def has_begun(self, endpoint: str) -> bool:
        """Whether it is attached: if it is the first one at a `host:port`, it is the host."""
        return self.first("attached") is not None

    def _command(self, name: str, log: str, options: Sequence[str]) -> tuple[str, ...]:
        """What starts the agent, up to the worker's program."""
        started = ("-m", "rallypoint.cli.logged_agent", log, "run", "--node-name", name)
        return (*started, *options)

    def events(self, kind: str, since_s: float = 0.0) -> list[LoggedEvent]:
        """The events of this kind from `since_s` on, in order."""
        return self._log.all(kind, since_s)

    def first(self, kind: str, since_s: float = 0.0) -> float | None:
        """When it first happened since then; None if it did not."""
        return self._log.first(kind, since_s)

    def last_s(self, kind: str, before_s: float) -> float:
        """When it last happened before then. It has happened."""
        return max(float(e["at_s"]) for e in self.events(kind) if e["at_s"] < before_s)

    @property
    def worker_pid(self) -> int:
        """The process id of its last worker."""
        return int(self.events("working")[-1]["pid"])

    def signal(self, number: int) -> None:
        """Send a signal to the agent and to its worker, one right after the other."""
        self._is_killed |= number == signal.SIGKILL
        self.process.send_signal(number)
        os.kill(self.worker_pid, number)

    def kill(self) -> float:
        """Send SIGKILL only to the agent. Returns the time."""
        self._is_killed = True
        killed_s = time.monotonic()
        self.process.kill()
        return killed_s

    def kill_all(self) -> float:
        """Send SIGKILL to the agent and all its processes. Returns the time of the first one."""
        self._is_killed = True
        return kill_tree(self.process.pid)

    def end(self) -> None:
        """Kill what the end of its process would leave behind: nothing, thanks to its guard."""

    def problem(self) -> str:
        """How it ended, with its last output; "" if it runs, or was killed from here."""
        code = self.process.poll()
        if code is None or self._is_killed:
            return ""
        with self._said.open("rb") as said:
            return f"the agent of {self.name} ended with exit code {code}: {tail_of(said)}"


class Team:
    """Agents of one run. `each`: those not killed from here, in the order of their start."""

    def __init__(
        self, kind: type[Agent], folder: Path, arguments: Sequence[str], worker: str, token: str
    ) -> None:
        self.each: list[Agent] = []
        self._all: list[Agent] = []
        self._kind, self._folder, self._arguments = kind, folder, arguments
        self._worker, self._token = worker, token

    def add(self, *more: str) -> Agent:
        """Start one more agent. `more`: options of `rallypoint run` for this one."""
        name = f"node{len(self._all)}"
        arguments = (*self._arguments, *more)
        agent = self._kind(name, self._folder, arguments, self._worker, self._token)
        self.each.append(agent)
        self._all.append(agent)
        return agent

    def kill(self, agent: Agent) -> float:
        """Send SIGKILL only to this agent. Returns the time."""
        self.each.remove(agent)
        return agent.kill()

    def end(self) -> None:
        """End every agent and worker that still runs."""
        workers = [e["pid"] for a in self._all for e in a.events("working")[-1:]]
        for agent in self._all:
            agent.end()
        end([agent.process for agent in self._all])
        for pid in workers:  # Its guard has ended it, or will end it soon.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def check_count(scenario: str, count: int, hint: str = "") -> None:
    """Raises BenchError if this many agents cannot be started here."""
    if not AGENTS_MIN <= count <= AGENTS_MAX:
        raise BenchError(
            f"{scenario} starts real agents, from {AGENTS_MIN} to {AGENTS_MAX} of them, not "
            f"{count}",
            hint,
        )


@contextlib.contextmanager
def team(
    count: int,
    nnodes: str,
    endpoint: str,
    run_id: str,
    *,
    worker: str = PLAIN,
    kind: type[Agent] = Agent,
    token: str = "",
    until: str = "working",
    within_s: float = DEADLINE_S,
    options: Sequence[str] = (),
) -> Iterator[Team]:
    """This many agents in their first round, whose workers have all logged the event `until`.

    The first agent is attached before the others start, so with a `host:port` endpoint it is the
    host. Without `token`, agents at such an endpoint get a new token, and not the user's.
    `kind`, `options`: of each agent.
    """
    if not token and parse_endpoint(endpoint).kind is EndpointKind.HOST:
        token = secrets.token_urlsafe(32)
    with scratch() as folder:
        arguments = (*kind.shared(nnodes, endpoint, run_id), *options)
        made = Team(kind, folder, arguments, worker, token)
        try:
            for index in range(count):
                made.add()
                if index == 0:
                    _wait_for_host(made.each[0], endpoint, within_s)
            wait_for(made.each, until, within_s=within_s)
            yield made
        finally:
            made.end()


def _wait_for_host(agent: Agent, endpoint: str, within_s: float) -> None:
    what = f"the agent of {agent.name} to attach"
    wait_until(lambda: agent.has_begun(endpoint), what, within_s, agent.problem)


@contextlib.contextmanager
def agents(
    count: int, nnodes: str, endpoint: str, run_id: str, **more: Any
) -> Iterator[list[Agent]]:
    """The agents of a team to which none is added. `more`: as for `team`."""
    with team(count, nnodes, endpoint, run_id, **more) as made:
        yield made.each


def wait_for(
    those: Sequence[Agent], kind: str, since_s: float = 0.0, within_s: float = DEADLINE_S
) -> list[float]:
    """Wait until all have logged this event. Returns when each first did. Raises BenchError."""
    wait_until(
        lambda: all(a.first(kind, since_s) is not None for a in those),
        f"{kind} everywhere",
        within_s,
        _problem_of(those),
    )
    times = [agent.first(kind, since_s) for agent in those]
    return [at_s for at_s in times if at_s is not None]


def _problem_of(those: Sequence[Agent]) -> Callable[[], str]:
    return lambda: next((text for text in (a.problem() for a in those) if text), "")
