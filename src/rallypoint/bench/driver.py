"""Starts coordinators and virtual nodes in separate processes, and sends them commands.

There are three kinds of coordinators: `served`, a `rallypoint serve` that is started here;
`embedded`, like the one in a node of a HOST:PORT endpoint; or a running one, named by its endpoint.
Every process that is started here is ended here, by its id.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from rallypoint.bench.counting import DEADLINE_S as FLEET_STEP_S
from rallypoint.bench.processes import DEADLINE_S, Wait, clean_environment, spread, start
from rallypoint.bench.processes import BenchError as BenchError
from rallypoint.core.values import Address, repr_without

SPARE_DESCRIPTORS: Final = 64
"""Descriptors that a process needs besides its connections."""
END_S: Final = 5.0
_LOOK_S: Final = 0.2
SPARE_PORTS: Final = 16
"""Ports of the range that other sockets of this machine may use, mostly those that listen."""
PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The first and the last port that a connection may take for itself, with IPv6 too (Linux)."""
PORTS_MAX: Final = 65_535 - 1_024 + 1


# -- processes -------------------------------------------------------------------------------------


class Process:
    """A started process: its id, its CPU time and its memory."""

    def __init__(
        self, arguments: Sequence[str], env: dict[str, str] | None = None, **options: Any
    ) -> None:
        self._popen = start(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment() if env is None else env,
            **options,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self.stdin, self._stdout = self._popen.stdin, self._popen.stdout
        self._read = b""

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._popen.poll()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def line(
        self,
        name: str,
        what: str = "its first line",
        within_s: float = DEADLINE_S,
        since_s: float = 0.0,
    ) -> bytes:
        """Its next line. `name` and `what` name the process and the line in messages.

        Raises BenchError if it ends before, or prints no line within `within_s` of `since_s`.
        """
        wait = Wait(f"{name}: {what}", within_s, since_s)
        while b"\n" not in self._read:
            if select.select([self._stdout], [], [], _LOOK_S)[0]:
                more = os.read(self._stdout.fileno(), 65_536)
                if not more:
                    self.end()
                    raise BenchError(f"{name} ended, with exit code {self.code}")
                self._read += more
            else:
                wait.check()
        line, _, self._read = self._read.partition(b"\n")
        return line

    def usage(self) -> Usage:
        """Its resource usage so far."""
        return usage_of(self.pid)

    def end(self) -> None:
        """Close its stdin, and kill it if it does not end within END_S."""
        self.let_go()
        try:
            self._popen.wait(END_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._stdout.close()

    def let_go(self) -> None:
        """Close its stdin, which makes it end."""
        with contextlib.suppress(OSError):
            self.stdin.close()

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self._popen.terminate()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self._popen.kill()


class Usage(msgspec.Struct, frozen=True):
    """CPU seconds since the start of a process, and its resident memory in bytes."""

    cpu_s: float
    memory_bytes: int


def usage_of(pid: int) -> Usage:
    """The resource usage of a process, from /proc (Linux). Raises BenchError elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError as error:
        raise BenchError(
            f"cannot read the CPU time and memory of process {pid}: {error}",
            "this needs Linux's /proc",
        ) from error
    ticks = int(fields[11]) + int(fields[12])
    cpu_s = _precise_cpu_s(pid) or ticks / os.sysconf("SC_CLK_TCK")
    return Usage(cpu_s, pages * os.sysconf("SC_PAGE_SIZE"))


def _precise_cpu_s(pid: int) -> float | None:
    """A process's CPU time in nanoseconds, because /proc only has hundredths of a second.

    The clock's number is what clock_getcpuclockid(3) returns on Linux. Python has no such function.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def check_descriptors(nodes: int) -> None:
    """Raise the limit of open files, which children inherit, to the need of this many nodes.

    Raises BenchError with the hard limit and how to raise it, if that is too low.
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


def check_ports(connections: int) -> None:
    """Raise BenchError if there are too few ports for so many connections to one address (Linux).

    It says how many there are, and how to have more.
    """
    try:
        first, last = map(int, PORTS.read_text().split())
    except OSError:  # no Linux
        return
    ports, needed = last - first + 1, connections + SPARE_PORTS
    if ports >= needed:
        return
    if needed > PORTS_MAX:
        hint = f"ask for fewer --nodes: one machine has at most {PORTS_MAX:,} for one coordinator"
    else:
        hint = (
            "raise it and try again (as root: sysctl -w "
            f"net.ipv4.ip_local_port_range='{min(first, 65_535 - needed + 1)} 65535'), "
            "or ask for fewer --nodes"
        )
    raise BenchError(
        f"{connections} nodes need {needed} ports of this machine to connect to one coordinator, "
        f"and net.ipv4.ip_local_port_range has {ports} ({first} to {last})",
        hint,
    )


# -- coordinators ----------------------------------------------------------------------------------


class Coordinator(msgspec.Struct):
    """A coordinator's address. `process`: None if it was not started here.

    `endpoint`: the endpoint for real agents; without it, the first agent hosts a coordinator.
    """

    address: Address
    process: Process | None = None
    token: str = ""
    endpoint: str = ""

    def __repr__(self) -> str:
        return repr_without(self, "token")


@contextlib.contextmanager
def served(*options: str) -> Iterator[Coordinator]:
    """A new `rallypoint serve` on a free port of loopback."""
    with _quiet() as log:
        process, endpoint = start_serve(*options, stderr=log)
        try:
            yield Coordinator(Address("127.0.0.1", port_of(endpoint)), process, endpoint=endpoint)
        finally:
            process.terminate()
            process.end()


def port_of(endpoint: str) -> int:
    """The port of an endpoint that `rallypoint serve` has printed."""
    return int(endpoint.rpartition(":")[2])


def start_serve(*options: str, stderr: IO[bytes]) -> tuple[Process, str]:
    """Start a `rallypoint serve` on a free port of loopback. Returns the process and its endpoint.

    Raises BenchError if it does not serve. The process has ended then.
    """
    process = Process(("-m", "rallypoint", "serve", "--port", "0", *options), stderr=stderr)
    try:
        return process, process.line("rallypoint serve").decode().strip()
    except BaseException:
        process.kill()
        process.end()
        raise


@contextlib.contextmanager
def embedded(*options: str) -> Iterator[Coordinator]:
    """A new coordinator like the one inside a node, in a separate process."""
    with _quiet() as log:
        process = Process(("-m", "rallypoint.bench.embedded", *options), stderr=log)
        try:
            yield Coordinator(Address("127.0.0.1", int(process.line("the coordinator"))), process)
        finally:
            process.end()


NOWHERE: Final = Coordinator(Address("127.0.0.1", 0))
"""For scenarios that start their own coordinators."""


@contextlib.contextmanager
def _quiet() -> Iterator[IO[bytes]]:
    with Path(os.devnull).open("wb") as log:
        yield log


class Plan(msgspec.Struct):
    """The parameters of a measurement: where, how often, with how many processes, for how long.

    `seconds`: how long to watch a run, or how long a part is stopped. `ddp`: whether workers are a
    DDP job. `ways`: how the job is started (ways.py); empty: the scenario's own choice.
    `progress`: whether idle nodes report progress. `runs`: the number of runs. `ledger`: where
    elected coordinators keep their records; "": a new folder. `place`: served or embedded, for a
    scenario that starts its own coordinators.
    """

    at: Coordinator
    repeats: int = 10
    processes: int = 1
    seconds: float = 10.0
    ddp: bool = False
    ways: tuple[str, ...] = ()
    progress: bool = False
    runs: int = 1
    ledger: str = ""
    place: str = "served"
    name: str = ""
    _runs: int = 0

    def run_id(self) -> str:
        """A new run id."""
        self.name = self.name or f"bench-{secrets.token_hex(4)}"
        self._runs += 1
        return f"{self.name}-{self._runs}"

    def usage(self) -> Usage | None:
        """The coordinator's resource usage; None if it was not started here."""
        return self.at.process.usage() if self.at.process is not None else None

    def cpu_s(self) -> float | None:
        """The coordinator's CPU time."""
        usage = self.usage()
        return usage.cpu_s if usage is not None else None


# -- fleets ----------------------------------------------------------------------------------------


_WAITS: Final = {
    "connect": "all nodes to be attached",
    "meet": "all nodes to get a round",
    "ended": "all nodes to be notified that the round has ended",
    "share": "the nodes of all machines",
    "store": "all calls of the store to be answered",
    "barrier": "all nodes to pass the barrier",
    "watch": "the end of the watch",
    "disconnect": "all nodes to leave",
}
_NODES: Final = "a process of nodes"
_STUCK_S: Final = 60.0
"""Added to the time limits of a process of nodes, which limits its waits itself, with a better
message.
"""


class Fleet:
    """A process of virtual nodes.

    `send` and `receive` are separate, so that several can work at once.
    """

    def __init__(self) -> None:
        self.process = Process(("-m", "rallypoint.bench.fleet"))
        self._what, self._within_s, self._since_s = "", 0.0, 0.0

    def send(self, do: str, **arguments: Any) -> None:
        """Send a command. Raises BenchError if the process has ended."""
        self._what = _WAITS.get(do, do)
        if arguments.get("ready"):
            self._what += " and given a round"
        steps = 2 * (1 + int(arguments.get("repeats", 0)))
        self._within_s = _STUCK_S + steps * FLEET_STEP_S + float(arguments.get("within_s", 0.0))
        self._within_s += float(arguments.get("seconds", 0.0))
        self._since_s = float(arguments.get("at_s", 0.0))
        command = {"do": do, **arguments}
        try:
            self.process.stdin.write(msgspec.json.encode(command) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.receive()  # Raises the error with the reason of the end.

    def receive(self) -> dict[str, Any]:
        """The answer to the last command. Raises BenchError."""
        line = self.process.line(_NODES, self._what, self._within_s, self._since_s)
        answer: dict[str, Any] = msgspec.json.decode(line)
        if "error" in answer:
            raise BenchError(answer["error"], answer.get("hint", ""))
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer."""
        self.send(do, **arguments)
        return self.receive()


class Fleets:
    """Several processes of virtual nodes, used like one."""

    def __init__(self, processes: int) -> None:
        self.each = [Fleet() for _ in range(processes)]

    def ask(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Send the same command to all processes at once. Returns all answers."""
        for fleet in self.each:
            fleet.send(do, **arguments)
        return [fleet.receive() for fleet in self.each]

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

        A process has at least two nodes, because one may freeze while another fails. Processes
        without nodes are ended. `options`: further arguments of a fleet's `connect`.
        """
        shares = spread(nodes, len(self.each), least=2)
        used, unused = self.each[: len(shares)], self.each[len(shares) :]
        self.each = used
        _end(unused)
        for own, fleet in zip(shares, self.each, strict=True):
            fleet.send(
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
        return [fleet.receive() for fleet in self.each]

    def end_round(self) -> None:
        """End the round that all nodes are in, and wait until all are notified.

        One node asks for the next round. It asks again together with the others, which replaces
        this call.
        """
        # Not by a worker's failure, because the coordinator would probe every node, and the answers
        # would arrive while the next meeting is measured.
        self.ask("expect_end")
        self.each[0].ask("again", index=0)
        self.ask("ended")

    def end(self) -> None:
        """End the processes."""
        _end(self.each)


def _end(fleets: Sequence[Fleet]) -> None:
    for fleet in fleets:
        fleet.process.let_go()
    for fleet in fleets:
        fleet.process.end()


@contextlib.contextmanager
def fleets(processes: int) -> Iterator[Fleets]:
    """Processes of nodes, ended with the block."""
    made = Fleets(processes)
    try:
        yield made
    except BaseException:
        for fleet in made.each:  # The process may be busy with a command, and not read its stdin.
            fleet.process.kill()
        raise
    finally:
        made.end()


def span(answers: Sequence[dict[str, Any]], last: str) -> float:
    """Seconds from the first `began_s` of any process to the last moment of this name."""
    ended_s: float = max(each[last] for each in answers)
    began_s: float = min(each["began_s"] for each in answers)
    return ended_s - began_s


def grown(before: list[dict[str, Any]], after: list[dict[str, Any]], *names: str) -> float:
    """The growth of the sum of these counts over all processes."""
    more: float = sum(a[n] - b[n] for a, b in zip(after, before, strict=True) for n in names)
    return more


@contextlib.contextmanager
def floor(nodes: int) -> Iterator[tuple[Process, Fleet, dict[str, Any]]]:
    """The two processes of bare sockets, connected, and the answer to their first meeting."""
    server = Process(("-m", "rallypoint.bench.socket_baseline", str(nodes)))
    fleet = Fleet()
    try:
        port = int(server.line("the floor"))
        yield server, fleet, fleet.ask("floor_connect", port=port, nodes=nodes)
    finally:
        fleet.process.end()
        server.end()
