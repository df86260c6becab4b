"""R8: only the agent holds its connection, so its kernel's FIN proves that the agent has ended."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.agent.processes import Machine, program_with
from tests.waiting import wait_until

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


def test_no_worker_fork_or_guard_holds_a_connection_of_its_agent(machine: Machine) -> None:
    program = machine.program(program_with(FAMILY))
    agents = [machine.agent(name, nnodes="2", program=program) for name in ("a", "b")]
    workers = {agent.name: agent.worker() for agent in agents}
    port = int(machine.endpoint.rpartition(":")[2])
    of_the_run = connections(port)
    for agent in agents:
        assert sockets_of(agent.pid) & of_the_run, agent.name
        # The guard, the worker, and what the worker has made.
        worker = workers[agent.name].pid
        wait_until(lambda worker=worker: len(descendants(worker)) >= 3)  # type: ignore[misc]
        below = descendants(agent.pid)
        assert len(below) >= 5
        for pid in below:
            assert not sockets_of(pid) & of_the_run, Path(f"/proc/{pid}/cmdline").read_bytes()

    # So the kernel notifies the others, although all of these live for another moment.
    agents[1].signal(signal.SIGKILL)
    agents[0].line(r"round 1 has ended: b lost: its (process ended|connection closed)")
