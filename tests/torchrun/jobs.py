"""Jobs of real torchrun agents on this machine: started, killed as machines are, and looked at.

A node is one agent with one worker, so that most of a test's time is not spent on importing torch.
What an agent prints is kept apart from its workers' stderr: a traceback among it is the agent's.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from rallypoint import tokens
from rallypoint.cli import api
from rallypoint.cli.api import NoSuchRunError
from rallypoint.endpoints import parse_endpoint
from rallypoint.errors import CoordinatorError
from tests.agent.processes import Machine, Process, alive, signal_all
from tests.ports import free_port
from tests.waiting import wait_until

T = TypeVar("T")
HERE = Path(__file__).parent
STEADY = HERE / "steady_worker.py"
QUIET = HERE / "quiet_worker.py"
HANGING = HERE / "hanging_worker.py"
PATIENCE_S = 150.0
"""For what takes seconds: where no names are resolved, each of torch's connections waits for it."""
MARK = "RP_TORCHRUN_TEST"

_WORKER = re.compile(r"worker (\d+) of (\d+) store (\S+) pid (\d+)$")


@dataclass(frozen=True)
class Worker:
    """What a worker said of itself when it started."""

    rank: int
    size: int
    store: str
    pid: int


class Node:
    """One torchrun agent with its workers."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.process = process

    @property
    def text(self) -> str:
        return self.process.text

    def workers(self) -> list[Worker]:
        """All that were started here, in order."""
        found = [_WORKER.match(line) for line in list(self.process.lines)]
        return [Worker(int(m[1]), int(m[2]), m[3], int(m[4])) for m in found if m]

    def tree(self) -> list[int]:
        """The agent and all it has started."""
        process = psutil.Process(self.process.pid)
        return [process.pid, *(child.pid for child in process.children(recursive=True))]

    def serves(self) -> int:
        """How many connections there are to where its agent listens."""
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        ports = {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}
        opened = [each for each in connections if each.status == psutil.CONN_ESTABLISHED]
        return sum(each.laddr.port in ports for each in opened)

    def die(self) -> None:
        """As when a machine is lost: everything on it at once. Workers have sessions of their own,
        so no signal to a group reaches them all."""
        signal_all(self.tree(), signal.SIGKILL)
        self.process.popen.wait()

    def ends_well(self) -> None:
        """Wait until it has ended, with exit code 0 and without a traceback of the agent's."""
        text = self.process.ends(0, PATIENCE_S)
        assert "Traceback" not in text, f"{self.name} raised:\n{text}"

    def ends_badly(self, *says: str) -> None:
        """Wait until it and its workers have ended, with a code that is not 0 and the cause."""
        assert self.process.code(PATIENCE_S) not in (0, None)
        for worker in self.workers():
            wait_until(lambda pid=worker.pid: not alive(pid), PATIENCE_S)  # type: ignore[misc]
        for each in says:
            assert each in self.text, f"{self.name} does not say {each!r}:\n{self.text}"


class Job:
    """One run: its coordinator, if that is a process of its own, and its nodes."""

    def __init__(self, folder: Path) -> None:
        self.machine = Machine(folder)
        self.folder = folder
        self.port = free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        self.nodes: dict[str, Node] = {}
        self._mark = uuid.uuid4().hex
        self.machine.env |= {
            "OMP_NUM_THREADS": "1",
            "LOGLEVEL": "INFO",
            "TMPDIR": str(folder),
            MARK: self._mark,
        }

    # -- starting ------------------------------------------------------------------------------

    def serve(self) -> Process:
        """A coordinator over files, once it listens; again on the same port and files."""
        self.endpoint = f"http://127.0.0.1:{self.port}"
        ledger = f"file:{self.folder / 'ledger'}"
        name = f"serve{len(self.machine.processes)}"
        serving = self.machine.command(
            "serve", "--port", str(self.port), "--ledger", ledger, name=name
        )
        serving.line("is ready at")
        return serving

    def start(
        self,
        names: str,
        script: Path,
        *arguments: str,
        nnodes: str = "2:4",
        options: tuple[str, ...] = (),
        conf: str = "",
        env: dict[str, str] | None = None,
    ) -> list[Node]:
        """Start nodes of these names (words), all at once."""
        return [
            self._start(name, script, arguments or (str(self.folder),), nnodes, options, conf, env)
            for name in names.split()
        ]

    def _start(
        self,
        name: str,
        script: Path,
        arguments: tuple[str, ...],
        nnodes: str,
        options: tuple[str, ...],
        conf: str,
        env: dict[str, str] | None,
    ) -> Node:
        conf = ",".join(filter(None, (f"node_name={name}", conf)))
        argv = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nnodes}"]
        argv += ["--rdzv-backend=rallypoint", f"--rdzv-endpoint={self.endpoint}", "--rdzv-id=job"]
        argv += [f"--rdzv-conf={conf}", "--local-addr=127.0.0.1"]
        argv += ["--redirects=2", f"--log-dir={self.folder / f'log-{name}'}", *options]
        argv += [str(script), *arguments]
        process = Process(argv, self.machine.env | (env or {}), self.folder, name)
        self.machine.processes.append(process)
        self.nodes[name] = Node(name, process)
        return self.nodes[name]

    # -- looking -------------------------------------------------------------------------------

    def wait(self, what: Callable[[], T], says: str) -> T:
        """Wait until it is so, or something is found: what was. Fails with what everybody said."""
        try:
            return wait_until(what, PATIENCE_S)
        except AssertionError:
            raise AssertionError(f"not within {PATIENCE_S:g} s: {says}\n{self.told()}") from None

    def says(self, pattern: str) -> re.Match[str]:
        """The first line of any node's in which the pattern is found, once there is one."""

        def look() -> list[re.Match[str]]:
            lines = [line for node in self.nodes.values() for line in list(node.process.lines)]
            return [hit for line in lines if (hit := re.search(pattern, line))]

        return self.wait(look, f"somebody says {pattern!r}")[0]

    def at_work(self, names: str) -> list[Worker]:
        """Wait until the newest worker of each of these is in one world of all of them.

        Returns them in the order of the names.
        """
        nodes = [self.nodes[name] for name in names.split()]

        def look() -> list[Worker]:
            found = [node.workers()[-1] for node in nodes if node.workers()]
            worlds = {(worker.size, worker.store) for worker in found}
            is_whole = sorted(worker.rank for worker in found) == list(range(len(nodes)))
            return found if is_whole and len(worlds) == 1 and found[0].size == len(nodes) else []

        return self.wait(look, f"{names} are one world")

    def told(self) -> str:
        """The last lines of all agents, for the reader of a failure."""
        those = self.machine.processes
        return "\n".join(f"-- {p.name}\n" + "\n".join(p.lines[-15:]) for p in those)

    def picture(self) -> dict[str, Any]:
        """What the coordinator says of the run; {} if it has not got it, or does not answer."""
        endpoint = parse_endpoint(f"127.0.0.1:{self.port}")
        # A `serve` without a token answers in clear, and a node's coordinator by TLS.
        for token in (tokens.of_home(make=False).token, ""):
            with contextlib.suppress(CoordinatorError, NoSuchRunError):
                return api.run(endpoint, token, "job")
        return {}

    def attached(self, count: int) -> dict[str, Any]:
        """Wait until the coordinator has so many nodes attached; what it says then."""
        self.wait(lambda: self.picture().get("attached") == count, f"{count} nodes are attached")
        return self.picture()

    def stands_by(self, name: str) -> None:
        """Wait until this node has asked for a round, and the coordinator keeps it as a spare.

        It is attached a little sooner: a run that ended in between would be an error to it.
        """

        def look() -> bool:
            members = self.picture().get("members", [])
            return any(each["name"] == name and each["state"] == "standby" for each in members)

        self.wait(look, f"{name} is on standby")

    # -- ending --------------------------------------------------------------------------------

    def end(self, rank: int | None = None) -> None:
        """Tell the workers to end; or one of them."""
        (self.folder / ("end" if rank is None else f"end-{rank}")).touch()

    def end_well(self, names: str) -> None:
        """Wait until each of these has ended well."""
        for name in names.split():
            self.nodes[name].ends_well()

    def left(self) -> list[int]:
        """The processes started here that still run, under any parent."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark and alive(process.pid):
                    found.append(process.pid)
        return found

    def close(self) -> None:
        """End all that is left. Only what was started here carries the mark."""
        until_s = time.monotonic() + 30
        while (pids := self.left()) and time.monotonic() < until_s:
            signal_all(pids, signal.SIGKILL)
        self.machine.close()
