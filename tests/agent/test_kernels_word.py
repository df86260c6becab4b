"""R8: only an agent and its guard hold its connection, so a FIN proves that the agent has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import events as on
from rallypoint.core.values import ConnectionEnd
from rallypoint.launch import guard_process
from tests.agent.processes import Machine, gone, program_with
from tests.loops import needs_ipv6, served
from tests.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.processes

FAMILY = """
import multiprocessing, subprocess
child = os.fork()
if not child:
    time.sleep(600)
multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True).start()
subprocess.Popen(["sleep", "600"], close_fds=False)
"""


def descendants(pid: int) -> set[int]:
    """All processes below one, of whatever generation."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (entry / "stat").read_text()
            parents[int(entry.name)] = int(text[text.rfind(")") + 2 :].split()[1])
    found, new = set[int](), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def sockets_of(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(os.readlink(entry))  # noqa: PTH115
    return {each for each in found if each.startswith("socket:")}


def connections(port: int) -> set[str]:
    """The TCP sockets of this machine that have this port on either side, listening ones too."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            fields = row.split()
            ports = {int(end.rpartition(":")[2], 16) for end in fields[1:3]}
            if port in ports:
                found.add(f"socket:[{fields[9]}]")
    return found


def unread_bytes(connection: str) -> int:
    """How many bytes of this TCP socket no process has read yet."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            fields = row.split()
            if f"socket:[{fields[9]}]" == connection:
                return int(fields[4].rpartition(":")[2], 16)
    raise AssertionError(f"{connection} is not open")


def guard_of(agent: int) -> int | None:
    """The guard process of an agent; None between two of them."""
    for pid in descendants(agent):
        with contextlib.suppress(OSError):
            if f"agent={agent}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


class Served:
    """A coordinator in a thread of this process, and the ends of connections that its runs saw."""

    def __init__(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.port = 0
        self.ends: list[tuple[str, ConnectionEnd, float]] = []
        """(node, how, when): when by time.monotonic()."""
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run)
        post = HostedRun.post

        def noted(run: HostedRun, event: on.Event) -> None:
            if isinstance(event, on.ConnectionLost):
                self.ends.append((event.node.name, event.how, time.monotonic()))
            post(run, event)

        monkeypatch.setattr(HostedRun, "post", noted)

    @property
    def endpoint(self) -> str:
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with served(host=self._host) as (_, self.port):
            await self._over.wait()

    def __enter__(self) -> Served:
        self._thread.start()
        wait_until(lambda: self.port, says="it does not listen")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def ends_of(self, name: str) -> list[ConnectionEnd]:
        return [how for each, how, _ in self.ends if each == name]


@pytest.fixture(params=["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def coordinator(
    request: pytest.FixtureRequest, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    machine.env["RALLYPOINT_INSECURE"] = "1"
    with Served(request.param, monkeypatch) as coordinator:
        yield coordinator
        machine.close()


@pytest.mark.parametrize("loses_its_guard", [False, True])
def test_r8_the_end_of_an_agent_that_has_not_read_all_is_known(
    machine: Machine, coordinator: Served, loses_its_guard: bool
) -> None:
    """Its kernel alone would send a reset, which proves nothing."""
    a, b = (machine.agent(n, nnodes="2:3", endpoint=coordinator.endpoint) for n in ("a", "b"))
    a.worker()
    worker = b.worker()
    [connection] = sockets_of(b.pid) & connections(coordinator.port)
    if loses_its_guard:
        first = guard_of(b.pid)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: guard_of(b.pid) not in (None, first))
    guard = guard_of(b.pid)
    assert guard is not None
    wait_until(lambda: connection in sockets_of(guard), says="the guard has no copy")

    machine.freeze(b.pid)
    # The coordinator tells b that the round ends.
    machine.agent("c", nnodes="2:3", endpoint=coordinator.endpoint)
    wait_until(lambda: unread_bytes(connection) > 0, says="the coordinator sends nothing")
    assert coordinator.ends_of("b") == []  # also not by the end of the first guard
    killed_s = time.monotonic()
    os.kill(b.pid, signal.SIGKILL)
    wait_until(lambda: coordinator.ends_of("b"), says="the coordinator saw no end")
    [(how, seen_s)] = [(how, at_s) for name, how, at_s in coordinator.ends if name == "b"]
    assert how is ConnectionEnd.PROCESS_ENDED
    # Normally some milliseconds. At the guard's own end its kernel sends a FIN, too.
    assert seen_s - killed_s < guard_process.FIN_WITHIN_S / 2
    gone([guard, worker.pid])


def test_an_agent_that_ends_in_order_says_so_and_leaves_no_guard(
    machine: Machine, coordinator: Served
) -> None:
    agent = machine.agent("a", nnodes="1", endpoint=coordinator.endpoint)
    worker = agent.worker()
    guard = guard_of(agent.pid)
    assert guard is not None
    os.kill(worker.pid, signal.SIGUSR2)
    agent.ends(0)
    gone([guard])
    wait_until(lambda: coordinator.ends_of("a"), says="the coordinator saw no end")
    [how] = coordinator.ends_of("a")
    assert how in {ConnectionEnd.OURS, ConnectionEnd.CLOSE}


def test_only_the_guard_has_a_copy_of_a_connection_of_its_agent(machine: Machine) -> None:
    program = machine.program(program_with(FAMILY))
    agents = [machine.agent(name, nnodes="2", program=program) for name in ("a", "b")]
    workers = {agent.name: agent.worker() for agent in agents}
    port = int(machine.endpoint.rpartition(":")[2])
    of_the_run = connections(port)
    for agent in agents:
        held = sockets_of(agent.pid) & of_the_run
        assert held, agent.name
        guard = guard_of(agent.pid)
        assert guard is not None
        [copy] = sockets_of(guard) & of_the_run
        assert copy in held
        # The guard, the worker, and what the worker has made.
        worker = workers[agent.name].pid
        wait_until(lambda worker=worker: len(descendants(worker)) >= 3)  # type: ignore[misc]
        below = descendants(agent.pid)
        assert len(below) >= 5
        for pid in below - {guard}:
            assert not sockets_of(pid) & of_the_run, Path(f"/proc/{pid}/cmdline").read_bytes()

    # So the kernel notifies the others, although all of these live for another moment.
    agents[1].signal(signal.SIGKILL)
    agents[0].line(r"round 1 has ended: b lost: its process ended")
