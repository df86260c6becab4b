"""Starts what is measured and who measures it, as processes of their own, and asks them.

A coordinator here is one of three: `served`, a `rallypoint serve` that is started for this;
`embedded`, the one that a node of a HOST:PORT endpoint carries; or one that runs already, named by
its endpoint. Every process that is started here is ended here, by its id.
"""

from __future__ import annotations

import contextlib
import http
import http.client
import os
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from rallypoint.bench.processes import BenchError as BenchError
from rallypoint.bench.processes import clean_environment
from rallypoint.core.values import Address
from rallypoint.endpoints import Endpoint, EndpointKind, parse_endpoint

SPARE_DESCRIPTORS: Final = 64
"""What a process needs besides its connections."""
END_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 5.0
RUNS_PATH: Final = "/api/v1/runs"


# -- processes -------------------------------------------------------------------------------------


class Process:
    """A process of ours: its id, its CPU time and its memory."""

    def __init__(self, arguments: Sequence[str], **options: Any) -> None:
        self._popen: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(),
            **options,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self.stdin, self.stdout = self._popen.stdin, self._popen.stdout

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._popen.poll()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def line(self, what: str) -> bytes:
        """Its next line. Raises BenchError if it ends instead."""
        line: bytes = self.stdout.readline()
        if not line:
            raise BenchError(f"{what} ended, with exit code {self._popen.wait(END_S)}")
        return line

    def usage(self) -> Usage:
        """What it has used until now."""
        return usage_of(self.pid)

    def end(self) -> None:
        """Let go of it: its stdin ends; what does not follow is killed."""
        with contextlib.suppress(OSError):
            self.stdin.close()
        try:
            self._popen.wait(END_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self.stdout.close()

    def terminate(self) -> None:
        """Ask it to end."""
        self._popen.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._popen.kill()


class Usage(msgspec.Struct, frozen=True):
    """CPU seconds since a process began, and the bytes of memory that are its own now."""

    cpu_s: float
    memory_bytes: int


def usage_of(pid: int) -> Usage:
    """What a process has used, from /proc (Linux). Raises BenchError elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError as error:
        raise BenchError(
            f"what process {pid} uses cannot be read: {error}", "this needs Linux's /proc"
        ) from error
    ticks = int(fields[11]) + int(fields[12])
    cpu_s = _precise_cpu_s(pid) or ticks / os.sysconf("SC_CLK_TCK")
    return Usage(cpu_s, pages * os.sysconf("SC_PAGE_SIZE"))


def _precise_cpu_s(pid: int) -> float | None:
    """A process's CPU time in nanoseconds' steps, where /proc has hundredths of a second.

    What clock_getcpuclockid(3) computes on Linux, as Python has it for threads only.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def check_descriptors(nodes: int) -> None:
    """Raise this process's limit of open files, which its children inherit, to what nodes need.

    Raises BenchError, which says what the limit is and how to raise it.
    """
    needed = nodes + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise BenchError(
                f"{nodes} nodes need {needed} open files in one process, and the hard limit "
                f"(RLIMIT_NOFILE) is {hard}",
                f"raise it and try again (as root: ulimit -Hn {needed} && ulimit -n {needed}), "
                "or ask for fewer --nodes",
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# -- coordinators ----------------------------------------------------------------------------------


class Coordinator(msgspec.Struct):
    """Where a coordinator listens. `process`: None if it is not ours, and cannot be looked into.

    `endpoint`: the same as real agents are given it; with none, the first of them carries one.
    """

    address: Address
    process: Process | None = None
    token: str = ""
    endpoint: str = ""


@contextlib.contextmanager
def served(*options: str) -> Iterator[Coordinator]:
    """A `rallypoint serve` of our own on a free port of loopback."""
    arguments = ("-m", "rallypoint", "serve", "--port", "0", *options)
    with _quiet() as log:
        process = Process(arguments, stderr=log)
        try:
            endpoint = process.line("rallypoint serve").decode().strip()
            port = int(endpoint.rpartition(":")[2])
            yield Coordinator(Address("127.0.0.1", port), process, endpoint=endpoint)
        finally:
            process.terminate()
            process.end()


@contextlib.contextmanager
def embedded() -> Iterator[Coordinator]:
    """A coordinator as a node carries it, in a process of its own."""
    process = Process(("-m", "rallypoint.bench.embedded"))
    try:
        yield Coordinator(Address("127.0.0.1", int(process.line("the coordinator"))), process)
    finally:
        process.end()


def running(endpoint: str, token: str) -> Coordinator:
    """A coordinator that somebody runs. Raises BenchError if none answers there, or it refuses."""
    place = parse_endpoint(endpoint)
    if place.kind not in (EndpointKind.HOST, EndpointKind.SERVED):
        raise BenchError(
            f"{endpoint!r} does not name a coordinator that runs", "write HOST:PORT or http://..."
        )
    _check_answer(endpoint, _ask_for_runs(place, token, endpoint))
    return Coordinator(Address(place.host, place.port), None, token, endpoint)


def _ask_for_runs(place: Endpoint, token: str, endpoint: str) -> int:
    """The HTTP status with which it answers; 0 for what is no HTTP."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection = http.client.HTTPConnection(place.host, place.port, timeout=CONNECT_TIMEOUT_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", RUNS_PATH, headers=headers)
            return connection.getresponse().status
        except http.client.HTTPException:
            return 0
        except OSError as error:
            raise BenchError(
                f"nobody answers at {endpoint}: {error.strerror or error}",
                "start one with `rallypoint serve`, or leave --at out",
            ) from error


def _check_answer(endpoint: str, status: int) -> None:
    if status == http.HTTPStatus.UNAUTHORIZED:
        raise BenchError(
            f"the coordinator at {endpoint} asks for a token, and got none or another one",
            "give the coordinator's own by --token-file or RALLYPOINT_TOKEN",
        )
    if status != http.HTTPStatus.OK:
        raise BenchError(
            f"what answers at {endpoint} is no coordinator of Rallypoint",
            "is the port right? `rallypoint serve` prints it",
        )


NOWHERE: Final = Coordinator(Address("127.0.0.1", 0))
"""For scenarios whose processes bring their own coordinator."""


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    with Path(os.devnull).open("wb") as log:
        yield log


class Plan(msgspec.Struct):
    """What a scenario is asked for: where, how often, by how many processes, for how long.

    `seconds`: how long to watch where nothing happens. `ddp`: whether workers are a DDP job.
    `runs`: of how many runs. `ledger`: where elected coordinators keep it; none is a folder.
    """

    at: Coordinator
    repeats: int = 10
    processes: int = 1
    seconds: float = 10.0
    ddp: bool = False
    runs: int = 1
    ledger: str = ""
    name: str = ""
    _runs: int = 0

    def run_id(self) -> str:
        """A run that nobody has used."""
        self.name = self.name or f"bench-{secrets.token_hex(4)}"
        self._runs += 1
        return f"{self.name}-{self._runs}"

    def usage(self) -> Usage | None:
        """What the coordinator has used, if it is ours."""
        return self.at.process.usage() if self.at.process is not None else None

    def cpu_s(self) -> float | None:
        """The CPU time of it."""
        usage = self.usage()
        return usage.cpu_s if usage is not None else None


# -- fleets ----------------------------------------------------------------------------------------


class Fleet:
    """A process of virtual nodes. `tell` and `hear` apart, so that several work at once."""

    def __init__(self) -> None:
        self.process = Process(("-m", "rallypoint.bench.fleet"))

    def tell(self, do: str, **arguments: Any) -> None:
        """Say what to do."""
        command = {"do": do, **arguments}
        self.process.stdin.write(msgspec.json.encode(command) + b"\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The answer. Raises BenchError."""
        answer: dict[str, Any] = msgspec.json.decode(self.process.line("a process of nodes"))
        if "error" in answer:
            raise BenchError(answer["error"])
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Say what to do, and wait until it is done."""
        self.tell(do, **arguments)
        return self.hear()


class Fleets:
    """Several processes of nodes, as one."""

    def __init__(self, processes: int) -> None:
        self.each = [Fleet() for _ in range(processes)]

    def ask(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """The same of all, at once."""
        for fleet in self.each:
            fleet.tell(do, **arguments)
        return [fleet.hear() for fleet in self.each]

    def connect(
        self,
        at: Coordinator,
        *,
        run_id: str,
        nodes: int,
        settings: dict[str, Any],
        ready: bool = False,
        first: int = 0,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Spread `nodes` nodes over the processes, and attach them.

        `options`: what else a fleet's `connect` takes.
        """
        share, more = divmod(nodes, len(self.each))
        for index, fleet in enumerate(self.each):
            own = share + (index < more)
            fleet.tell(
                "connect",
                host=at.address.host,
                port=at.address.port,
                run_id=run_id,
                first=first,
                nodes=own,
                settings=settings,
                token=at.token,
                ready=ready,
                **options,
            )
            first += own
        return [fleet.hear() for fleet in self.each]

    def end_round(self) -> None:
        """End the round that all are in, and wait until all are told.

        By one node that wants the next: a worker's failure would also have every node probed, and
        the answers would come in the midst of what is measured next. Its call is made again with
        those of the others, which replaces this one.
        """
        self.ask("expect_end")
        self.each[0].ask("again", index=0)
        self.ask("ended")

    def end(self) -> None:
        """End the processes."""
        for fleet in self.each:
            fleet.process.end()


@contextlib.contextmanager
def fleets(processes: int) -> Iterator[Fleets]:
    """Processes of nodes, ended with the block."""
    made = Fleets(processes)
    try:
        yield made
    finally:
        made.end()


def span(told: Sequence[dict[str, Any]], last: str) -> float:
    """From the first beginning of any process to the last end, in seconds."""
    ended_s: float = max(t[last] for t in told)
    began_s: float = min(t["began_s"] for t in told)
    return ended_s - began_s


def grown(before: list[dict[str, Any]], after: list[dict[str, Any]], *names: str) -> float:
    """By how much these counts of all processes have grown together."""
    more: float = sum(a[n] - b[n] for a, b in zip(after, before, strict=True) for n in names)
    return more


@contextlib.contextmanager
def floor(nodes: int) -> Iterator[tuple[Process, Fleet, dict[str, Any]]]:
    """The floor's two processes, connected; and how that went."""
    server = Process(("-m", "rallypoint.bench.floor", str(nodes)))
    fleet = Fleet()
    try:
        port = int(server.line("the floor"))
        yield server, fleet, fleet.ask("floor_connect", port=port, nodes=nodes)
    finally:
        fleet.process.end()
        server.end()
