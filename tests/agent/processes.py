"""Real `rallypoint run` processes: started, read line by line, signalled, and gone at the end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port
from tests.waiting import DEADLINE_S, wait_until

SRC = Path(__file__).parents[2] / "src"
MAIN = "from rallypoint.cli.main import main; main()"

# A line in one piece. print writes the words and the end of a line on their own, and what another
# thread or a forked process says comes between.
SAY = """
import sys

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()
"""

# Prints its ranks, then follows signals: USR1 raises, USR2 ends well.
PROGRAM = f"""{SAY}
import os, signal, time

def end(*_):
    sys.exit(0)

def fail(*_):
    raise ValueError("bad batch in shard 7")

signal.signal(signal.SIGUSR1, fail)
signal.signal(signal.SIGUSR2, end)
# more
get = os.environ.get
say("worker", get("RALLYPOINT_ROUND"), get("RANK"), get("WORLD_SIZE"), os.getpid())
while True:
    time.sleep(1)  # Not signal.pause(): a signal just before it would be handled after the next.
"""


def program_with(setup: str) -> str:
    """PROGRAM, which does this before it says that it is there."""
    return PROGRAM.replace("# more", setup)


def alive(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text[text.rfind(")") + 2] not in "ZX"


def is_stopped(pid: int) -> bool:
    """Whether no thread of the process runs: it was stopped, or has ended."""
    with contextlib.suppress(OSError):  # a thread that ends just now
        texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        return all(text[text.rfind(")") + 2] in "TtZX" for text in texts)
    return False


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes. The end of one may have ended another before its turn."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def gone(pids: Iterable[int], within_s: float = DEADLINE_S) -> None:
    """Wait until none of these processes is alive."""
    numbers = list(pids)
    assert numbers
    wait_until(lambda: not any(map(alive, numbers)), within_s)


@dataclass(frozen=True)
class Worker:
    """What a worker of PROGRAM said of itself."""

    round: int
    rank: int
    size: int
    pid: int


class Process:
    """A process whose stdout and stderr are read together, line by line."""

    def __init__(
        self,
        argv: list[str],
        env: dict[str, str],
        cwd: Path,
        name: str,
        *,
        read: bool = True,
        beside: Sequence[Process] = (),
    ) -> None:
        """`beside`: those of the same test, whose lines are shown as well where this one fails."""
        self.name = name
        self._beside = beside
        self.lines: list[str] = []
        self._found: dict[str, int] = {}  # where the search goes on, by source
        self._changed = threading.Condition()
        self._is_over = False
        self.popen = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        if read:
            self._reader.start()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def read_on(self) -> None:
        """Begin to read, for one that was started with read=False."""
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._changed:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def line(self, pattern: str, within_s: float = DEADLINE_S) -> re.Match[str]:
        """The next line in which the pattern is found.

        The search begins, for each source, after the line of it that was found last. An agent
        and each of its workers are sources: what they say has no order among them.
        """
        ends_s = time.monotonic() + within_s
        searched = 0
        with self._changed:
            while True:
                for place in range(searched, len(self.lines)):
                    source = self._source(place)
                    if place < self._found.get(source, 0):
                        continue
                    if found := re.search(pattern, self.lines[place]):
                        self._found[source] = place + 1
                        return found
                searched = len(self.lines)
                left_s = ends_s - time.monotonic()
                if self._is_over or left_s <= 0:
                    raise AssertionError(f"{self.name} did not say {pattern!r}:\n{self._story}")
                self._changed.wait(left_s)

    def rewind(self) -> None:
        """Search from the first line again."""
        self._found.clear()

    def _source(self, place: int) -> str:
        """Who said this line, by the prefix that agents give to their lines and their workers'."""
        prefix = re.match(r"\[[^\]]+\]", self.lines[place])
        return prefix[0] if prefix else ""

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def _story(self) -> str:
        """All that it and those beside it said."""
        others = [process for process in self._beside if process is not self]
        return "\n".join(
            [self.text, *(f"--- {process.name} said:\n{process.text}" for process in others)]
        )

    def workers(self, count: int, round: int | None = None) -> list[Worker]:
        """The next workers that start here (of PROGRAM), in the order of their ranks."""
        found: list[Worker] = []
        while len(found) < count:
            match = self.line(r"worker (\d+) (\d+) (\d+) (\d+)$")
            worker = Worker(*map(int, match.groups()))
            if round is None or worker.round == round:
                found.append(worker)
        return sorted(found, key=lambda worker: worker.rank)

    def worker(self, round: int | None = None) -> Worker:
        return self.workers(1, round)[0]

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def code(self, within_s: float = DEADLINE_S) -> int:
        """Its exit code, once it has ended and all that it wrote was read."""
        try:
            code = self.popen.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end:\n{self._story}") from None
        if self._reader.ident is not None:
            self._reader.join(within_s)
        return code

    def close(self) -> None:
        """Once it has been killed: wait for its end, and for its readers'."""
        self.popen.wait(DEADLINE_S)
        if self._reader.ident is not None:
            self._reader.join(DEADLINE_S)
        assert self.popen.stdout is not None
        self.popen.stdout.close()

    def ends(self, code: int, within_s: float = DEADLINE_S) -> str:
        """All it said, once it has ended with this code."""
        found = self.code(within_s)
        assert found == code, f"{self.name} ended with {found}, not {code}:\n{self._story}"
        return self.text


class Machine:
    """Starts processes, and lets none of them survive the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.main = MAIN
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.processes: list[Process] = []
        self.frozen: set[int] = set()
        self._has_host = False
        self.env = {
            name: text for name, text in os.environ.items() if not name.startswith("RALLYPOINT_")
        }
        self.env |= {"PYTHONPATH": str(SRC), "RALLYPOINT_LAST_CALL": "1"}

    def program(self, code: str = PROGRAM, name: str = "program.py") -> str:
        path = self.directory / name
        path.write_text(code)
        return str(path)

    def command(
        self, *arguments: str, name: str = "", env: dict[str, str] | None = None, read: bool = True
    ) -> Process:
        argv = [sys.executable, "-c", self.main, *arguments]
        environment = self.env | (env or {})
        process = Process(
            argv,
            environment,
            self.directory,
            name or arguments[0],
            read=read,
            beside=self.processes,
        )
        self.processes.append(process)
        return process

    def agent(
        self,
        name: str,
        *options: str,
        nnodes: str = "1:3",
        program: str | None = None,
        endpoint: str | None = None,
        env: dict[str, str] | None = None,
        read: bool = True,
    ) -> Process:
        """An agent named `name`; `options` come before the program, which is PROGRAM by default.

        Unless there is an endpoint or options say otherwise, the first one is the host.
        """
        if endpoint is None and "--host-coordinator" not in options:
            options = ("--host-coordinator", "no" if self._has_host else "yes", *options)
            self._has_host = True
        options = ("--node-name", name, "--nnodes", nnodes, "--run-id", "test", *options)
        where = ("--endpoint", endpoint or self.endpoint)
        return self.command(
            "run", *options, *where, program or self.program(), name=name, env=env, read=read
        )

    def freeze(self, *pids: int) -> None:
        """Stop processes, and wait until none of their threads runs any more."""
        for pid in pids:
            self.frozen.add(pid)
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: all(map(is_stopped, pids)))

    def thaw(self, *pids: int) -> None:
        self.frozen.difference_update(pids)
        signal_all(pids, signal.SIGCONT)

    def close(self) -> None:
        """End all. A guard ends what its agent leaves behind."""
        for process in self.processes:
            if process.popen.poll() is None:
                process.popen.kill()
        self.thaw(*self.frozen)
        for process in self.processes:
            process.close()
