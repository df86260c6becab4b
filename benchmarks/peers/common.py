"""Shared by the scripts of all peers: threads and processes of nodes, timing, and the output.

It imports only the standard library, because the interpreters of the peers' environments run it.

A script is called as `python -m benchmarks.peers.NAME meet NODES REPEATS`, or `... death KIND
REPEATS`, and prints lines of JSON: the `Measured` so far. The last line counts, and other output is
ignored. harness.py ends a script that does not end in time.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import math
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NoReturn

KILLED: Final = "killed"
"""The node's process has ended, and the kernel closes its connections."""
SILENT: Final = "silent"
"""The node sends nothing more and its connections stay open: a frozen process, a power failure."""
PR_SET_PDEATHSIG: Final = 1
STACK_BYTES: Final = 512 * 1024


class CannotError(Exception):
    """This peer cannot do what is measured. The text is the reason in the table."""


@dataclass
class Measured:
    """What a script measured. `values`: by figure, one value for each repeat, in milliseconds.

    `carried`: what the nodes were: processes, or threads of one process. `wanted`: by figure, how
    many values there will be, if nothing stops the script.
    """

    version: str
    carried: str
    wanted: dict[str, int]
    event_loop: str = ""
    """The event loop of its processes, where they have one and it can be read."""
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value_s: float) -> None:
        """Add a value in seconds, and print all so far, as time may run out before the next."""
        self.values.setdefault(name, []).append(value_s * 1e3)
        say(asdict(self))


def main(
    meet: Callable[[int, int], Measured],
    death: Callable[[str, int], Measured] | None = None,
    serve: Callable[[Sequence[str]], None] | None = None,
) -> None:
    """Run the script: measure what the command line says, and print it."""
    raise_descriptors()
    command, *arguments = sys.argv[1:]
    try:
        if command == "serve" and serve is not None:
            serve(arguments)
            return
        if command == "meet":
            found = meet(int(arguments[0]), int(arguments[1]))
        elif command == "death" and death is not None:
            found = death(arguments[0], int(arguments[1]))
        else:
            raise CannotError(f"it has no {command}")
    except CannotError as error:
        say({"cannot": str(error)})
    else:
        say(asdict(found))
    sys.stdout.flush()
    os._exit(0)  # The goodbyes of a thousand clients are not measured.


def say(answer: dict[str, Any]) -> None:
    """Print a line for harness.py."""
    print(f"\n{json.dumps(answer)}", flush=True)


def versions(*names: str) -> str:
    """The installed versions of these packages."""
    return ", ".join(f"{name} {metadata.version(name).partition('+')[0]}" for name in names)


def event_loop(*pids: int) -> str:
    """The event loop of these processes, from the libraries that they have loaded (Linux).

    Raises OSError without /proc, and for a process that has ended.
    """
    maps = [Path(f"/proc/{pid}/maps").read_text(encoding="utf-8") for pid in pids]
    kinds = {versions("uvloop") if "/uvloop/loop." in text else "asyncio's own" for text in maps}
    return " and ".join(sorted(kinds))


def raise_descriptors() -> None:
    """Raise this process's limit of open files to its hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_s(pid: int) -> float:
    """The CPU time of a process so far, all threads together (Linux)."""
    return time.clock_gettime((~pid << 3) | 2)


# -- a server in a process of its own --------------------------------------------------------------


class Server:
    """The peer's server. `first_line`: what it printed when it was ready, such as its port."""

    def __init__(self, process: subprocess.Popen[str], first_line: str = "") -> None:
        self.process = process
        self.first_line = first_line

    def cpu_s(self) -> float:
        """The CPU time that it has used."""
        return cpu_s(self.process.pid)


@contextlib.contextmanager
def served(module: str, *arguments: object) -> Iterator[Server]:
    """`python -m MODULE serve ARGUMENTS`, which prints a line when it is ready."""
    command = [sys.executable, "-m", module, "serve", *map(str, arguments)]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise CannotError(f"its server ended with exit code {process.wait()}")
        yield Server(process, line)


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    process = subprocess.Popen(command, text=True, preexec_fn=die_with_parent, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until_stdin_ends() -> None:
    """Serve until stdin ends."""
    sys.stdin.buffer.read()


def die_with_parent() -> None:
    """On Linux, make the kernel kill this process when its parent ends, for any reason."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# -- rounds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """From the first call of any node to the last answer, and to the last call; in seconds."""

    span_s: float
    skew_s: float


def round_of(calls: Sequence[tuple[float, float]]) -> Round:
    """The round that these moments make: for each node, when it called and when it was answered."""
    first_s = min(called_s for called_s, _ in calls)
    return Round(
        max(answered_s for _, answered_s in calls) - first_s,
        max(called_s for called_s, _ in calls) - first_s,
    )


def end_at_once(what: str, error: BaseException) -> NoReturn:
    """Print why nothing was measured, and end the process. May be called from any thread."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    say({"cannot": f"{what}: {text[:200]}"})
    os._exit(0)


class Threads:
    """Nodes that are threads of this process, kept from round to round.

    For clients that release Python's global lock while they wait. Each thread waits at a gate of
    its own, and takes the times of its call and its answer. It does little else, since all threads
    share the lock.
    """

    def __init__(self, count: int) -> None:
        threading.stack_size(STACK_BYTES)
        self._gates = [threading.Lock() for _ in range(count)]
        self._act: Callable[[int], object] = lambda index: None
        self._calls: list[tuple[float, float]] = [(math.inf, -math.inf)] * count
        self._answered = itertools.count(1)
        self._done = threading.Lock()
        self._done.acquire()
        for index, gate in enumerate(self._gates):
            gate.acquire()
            threading.Thread(target=self._run, args=(index, gate), daemon=True).start()

    def round(self, act: Callable[[int], object]) -> Round:
        """Let every node act at the same time, and wait for the last one."""
        self._act, self._answered = act, itertools.count(1)
        time.sleep(0.02)  # until the last of them is at its gate again
        for gate in self._gates:
            gate.release()
        self._done.acquire()
        return round_of(self._calls)

    def _run(self, index: int, gate: threading.Lock) -> None:
        count = len(self._gates)
        while True:
            gate.acquire()
            called_s = time.monotonic()
            try:
                self._act(index)
            except BaseException as error:  # noqa: BLE001  (it is printed, and ends the process)
                end_at_once(f"node {index}", error)
            self._calls[index] = (called_s, time.monotonic())
            if next(self._answered) == count:
                self._done.release()


class Processes:
    """Nodes that are processes, forked from this one, which has imported all that they need.

    `node(index)` makes the function that acts. It is called within the first round, and its result
    in each round. All processes exist and wait before any of them begins.
    """

    def __init__(
        self, count: int, rounds: int, node: Callable[[int], Callable[[], object]]
    ) -> None:
        self._start = mmap.mmap(-1, 8)
        self._gates = [os.pipe() for _ in range(rounds)]
        self._answers, self._write_fd = os.pipe()
        self._round = 0
        self.pids: dict[int, int] = {}
        sys.stdout.flush()
        for index in range(count):
            pid = os.fork()
            if pid == 0:
                self._run(index, node)
            self.pids[index] = pid
        self._all = list(self.pids.values())
        os.close(self._write_fd)
        self._lines = os.fdopen(self._answers, encoding="utf-8")

    def kill(self, index: int, kind: str) -> float:
        """Kill a node, or freeze it; returns when."""
        at_s = time.monotonic()
        os.kill(self.pids.pop(index), signal.SIGKILL if kind == KILLED else signal.SIGSTOP)
        return at_s

    def begin(self, head_start_s: float | None = None) -> float:
        """Let all nodes call. Returns the moment at which they do."""
        if head_start_s is None:
            head_start_s = 0.2 + 0.004 * len(self.pids)
        start_s = time.monotonic() + head_start_s
        struct.pack_into("d", self._start, 0, start_s)
        read_fd, write_fd = self._gates[self._round]
        self._round += 1
        os.close(write_fd)
        os.close(read_fd)
        return start_s

    def answers(self) -> list[tuple[float, float]]:
        """When each node called and was answered. Raises CannotError."""
        calls = []
        for _ in self.pids:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise CannotError(answer["error"])
            calls.append((answer["called_s"], answer["answered_s"]))
        return calls

    def round(self) -> Round:
        """Let all nodes make one round."""
        self.begin()
        return round_of(self.answers())

    def end(self) -> None:
        """End all of them, also those that are frozen."""
        for pid in self._all:
            os.kill(pid, signal.SIGKILL)
        for pid in self._all:
            os.waitpid(pid, 0)
        self._lines.close()
        for fds in self._gates[self._round :]:
            for fd in fds:
                os.close(fd)

    def _run(self, index: int, node: Callable[[int], Callable[[], object]]) -> NoReturn:
        die_with_parent()
        for _, write_fd in self._gates:
            os.close(write_fd)
        act = None
        for read_fd, _ in self._gates:
            os.read(read_fd, 1)  # Until the parent closes its end.
            (start_s,) = struct.unpack_from("d", self._start)
            time.sleep(max(0.0, start_s - time.monotonic()))
            called_s = time.monotonic()
            try:
                if act is None:
                    act = node(index)
                act()
                answer: dict[str, Any] = {"called_s": called_s, "answered_s": time.monotonic()}
            except BaseException as error:  # noqa: BLE001  (it is reported, and ends the measurement)
                text = " ".join(f"{type(error).__name__}: {error}".split())
                answer = {"error": f"node {index}: {text[:200]}"}
            os.write(self._write_fd, json.dumps(answer).encode() + b"\n")
        while True:
            signal.pause()


def free_port() -> int:
    """A free port of 127.0.0.1 that will probably stay free for a while."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
