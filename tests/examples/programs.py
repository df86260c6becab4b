"""Programs as a user starts them: what they print, how they end, and what is left of them."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from tests.ports import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MARK = "RP_TEST_MARK"
# Found but not imported: an import would delay the collection of tests by two seconds.
needs_sklearn = pytest.mark.skipif(
    not (importlib.util.find_spec("numpy") and importlib.util.find_spec("sklearn")),
    reason="numpy or sklearn is not installed",
)
WITHIN_S = 100.0
"""For what takes seconds, on a machine that does much else and resolves no names."""


class Program:
    """A process in a session of its own; its stdout and stderr, as lines."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                with self._more:
                    self.lines.append(line.rstrip("\n"))
                    self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, within_s: float = WITHIN_S) -> re.Match[str]:
        """The first line that matches. Fails the test if it ends without one."""

        def found() -> re.Match[str] | None:
            return next((hit for each in self.lines if (hit := re.search(pattern, each))), None)

        with self._more:
            self._more.wait_for(lambda: found() or self._ended, within_s)
            hit = found()
        assert hit is not None, f"no line like {pattern!r} in:\n{self.text}"
        return hit

    def end(self, within_s: float = WITHIN_S) -> int:
        """Its exit code, once it has ended and all it said is here."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within_s} s:\n{self.text}") from None
        self._thread.join(within_s)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def workers(self) -> list[psutil.Process]:
        """The processes that it has started for the script of an example."""
        return self.workers_of("examples/")

    def workers_of(self, script: str) -> list[psutil.Process]:
        """The processes that it has started for this script."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in children if any(script in arg for arg in each.cmdline())]


class Programs:
    """Starts programs, ends them, and looks for what they have left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        self.interpreter = sys.executable
        self._mark = uuid.uuid4().hex
        self._started: list[Program] = []
        self._agents: set[int] = set()

    def python(self, *arguments: str, **env: str) -> Program:
        """Start Python with these arguments, in an environment that is the test's own."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RALLYPOINT_")}
        own = {
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.directory),
            MARK: self._mark,
        }
        program = Program([self.interpreter, *arguments], {**inherited, **own, **env})
        self._started.append(program)
        return program

    def cli(self, *arguments: str, **env: str) -> Program:
        """Start a `rallypoint` command."""
        return self.python("-m", "rallypoint.cli", *arguments, **env)

    def node(
        self,
        name: str,
        options: str,
        *program: str,
        is_host: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Program:
        """Start one node of this test's run with `rallypoint run`."""
        hosts = "yes" if is_host else "no"
        common = f"--endpoint {self.endpoint} --run-id test --node-name {name}"
        return self.cli(
            "run",
            *f"{common} --host-coordinator {hosts} {options}".split(),
            *map(str, program),
            **({} if env is None else env),
        )

    def wait_for_coordinator(self) -> None:
        """Wait until a process listens, so that the next one to start does not host."""

        def listens() -> bool:
            with socket.socket() as sock:
                sock.settimeout(1)
                return sock.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(listens, WITHIN_S, says="no node hosts the coordinator")

    def note_agents_of(self, program: Program) -> None:
        """Its children are agents: their guards, which inherit no environment, count too."""
        self._agents |= {each.pid for each in psutil.Process(program.process.pid).children()}

    def left(self) -> list[str]:
        """What runs of all that was started here: by its environment, or as an agent's guard."""
        pids = {each.process.pid for each in self._started} | self._agents
        agents = {f"agent={pid}" for pid in pids}
        found = []
        for each in psutil.process_iter():
            try:
                line = each.cmdline()
                is_ours = each.environ().get(MARK) == self._mark or not agents.isdisjoint(line)
                if is_ours and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{each.pid}: {' '.join(line)}")
            except psutil.Error:  # it has ended meanwhile, or belongs to another user
                continue
        return found

    def assert_nothing_left(self) -> None:
        """Ended agents' guards need a moment."""
        wait_until(lambda: not self.left(), says="processes are left")

    def end_all(self) -> None:
        """End whatever a failed test has left; only what was started here."""
        for program in self._started:
            if program.process.poll() is None:
                program.process.send_signal(signal.SIGKILL)
                program.process.wait()


def programs(directory: Path) -> Iterator[Programs]:
    """A fixture's body."""
    started = Programs(directory)
    try:
        yield started
        started.assert_nothing_left()
    finally:
        started.end_all()


def accuracy_of(program: Program) -> float:
    """The test accuracy that it printed."""
    return float(program.wait_for(r"test accuracy ([\d.]+)")[1])


def losses_of(program: Program) -> list[float]:
    """The loss of each epoch that it printed."""
    return [float(each) for each in re.findall(r"epoch \d+ of \d+: loss ([\d.]+)", program.text)]
