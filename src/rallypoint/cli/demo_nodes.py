"""The nodes of `rallypoint demo`: real `rallypoint run` agents, which are started and ended here.

Every agent has its own session, so that Ctrl-C at the terminal reaches only the demo, which then
ends the agents in order. Signals are sent only to processes that were started here.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from rallypoint import tokens
from rallypoint.cli import api, output
from rallypoint.environments import is_launchers
from rallypoint.errors import RallypointError
from rallypoint.launch.worker_env import inherited_environment
from rallypoint.settings import Endpoint

ASK_EVERY_S: Final = 0.1
STOP_WAITS_S: Final = (4.0, 3.0)
"""How many seconds agents have after SIGTERM, and after a second one, which ends the coordinator's
host.
"""
KILLED_WITHIN_S: Final = 5.0
THREAD_ENDS_WITHIN_S: Final = 1.0
_LINES_KEPT: Final = 200


class Line(msgspec.Struct, frozen=True):
    """A line that an agent or its worker has printed."""

    node: str
    text: str


class StatusAnswer(msgspec.Struct, frozen=True):
    """An answer of the coordinator about the run."""

    body: dict[str, object]


class Agent(msgspec.Struct):
    """One agent's process, and its last lines of output."""

    name: str
    process: subprocess.Popen[str]
    lines: list[str] = msgspec.field(default_factory=list)
    was_killed: bool = False

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll()


class Nodes:
    """All agents of one demo.

    Use it as `with Nodes(...) as nodes:`; all agents end with the block.
    """

    def __init__(self, endpoint: Endpoint, run_id: str, directory: Path) -> None:
        self.agents: dict[str, Agent] = {}
        self._endpoint = endpoint
        self._run_id = run_id
        # A new token, so that the demo neither reads nor writes the one in the user's home.
        self._token = tokens.draw()
        self._directory = directory
        self._happened: queue.SimpleQueue[Line | StatusAnswer] = queue.SimpleQueue()
        self._over = threading.Event()
        self._asking = _thread(self._ask)
        self._reading: list[threading.Thread] = []

    def __enter__(self) -> Nodes:
        self._asking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._stop()
        self.hear_out()
        self._asking.join(timeout=THREAD_ENDS_WITHIN_S)

    def start(self, name: str, arguments: Sequence[str]) -> Agent:
        """Start an agent with these arguments of `rallypoint run`. Raises OSError."""
        process = subprocess.Popen(
            [sys.executable, "-m", "rallypoint.cli", "run", *arguments],
            env=_environment(self._directory) | {"RALLYPOINT_TOKEN": self._token},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        agent = self.agents[name] = Agent(name, process)
        reading = _thread(lambda: self._read(agent))
        self._reading.append(reading)
        reading.start()
        return agent

    def kill(self, name: str) -> None:
        """Send SIGKILL to an agent. Its guard then ends the processes that it has started."""
        agent = self.agents[name]
        agent.was_killed = True
        agent.process.kill()
        agent.process.wait(KILLED_WITHIN_S)

    def happenings(self, within_s: float) -> Iterator[Line | StatusAnswer]:
        """Lines and answers since the last call; waits `within_s` for the first."""
        with contextlib.suppress(queue.Empty):
            yield self._happened.get(timeout=within_s)
            while True:
                yield self._happened.get_nowait()

    def hear_out(self) -> None:
        """Wait until the last output of the agents has been read."""
        for thread in self._reading:
            thread.join(timeout=THREAD_ENDS_WITHIN_S)

    def _read(self, agent: Agent) -> None:
        assert agent.process.stdout is not None
        path = self._directory / f"{agent.name}.log"
        with agent.process.stdout as lines, path.open("w", encoding="utf-8") as log:
            for line in lines:
                log.write(line)
                log.flush()
                text = output.clean(line.rstrip("\n"))
                agent.lines[:] = [*agent.lines[1 - _LINES_KEPT :], text]
                self._happened.put(Line(agent.name, text))

    def _ask(self) -> None:
        while not self._over.wait(ASK_EVERY_S):
            # The coordinator does not answer yet, or not any more.
            with contextlib.suppress(RallypointError):
                self._happened.put(StatusAnswer(api.run(self._endpoint, self._token, self._run_id)))

    def _stop(self) -> None:
        for wait_s in STOP_WAITS_S:
            for agent in self._running():
                agent.process.terminate()
            self._wait(wait_s)
        for agent in self._running():
            agent.process.kill()
        self._wait(KILLED_WITHIN_S)

    def _running(self) -> list[Agent]:
        return [agent for agent in self.agents.values() if agent.code is None]

    def _wait(self, within_s: float) -> None:
        until_s = time.monotonic() + within_s
        for agent in self._running():
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.process.wait(max(0.0, until_s - time.monotonic()))


def _environment(directory: Path) -> dict[str, str]:
    """The user's environment without Rallypoint's and a launcher's variables; few threads."""
    # TMPDIR is the demo's directory, because a killed agent may leave its scratch directory behind.
    kept = {
        name: text
        for name, text in inherited_environment().items()
        if not name.startswith("RALLYPOINT_") and not is_launchers(name)
    }
    own = {"TMPDIR": str(directory), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**kept, **own}


def _thread(work: Callable[[], None]) -> threading.Thread:
    return threading.Thread(target=work, name="rallypoint-demo", daemon=True)
