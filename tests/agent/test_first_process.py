"""`rallypoint run` as process 1 of a container."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.agent.processes import MAIN, Machine, Process

pytestmark = pytest.mark.processes

CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
LEAVES_ORPHANS = """
import os, struct, time
from pathlib import Path

read, write = os.pipe()
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write, struct.pack("i", os.getpid()))
        os._exit(0)
    os.wait()
orphans = [struct.unpack("i", os.read(read, 4))[0] for _ in range(5)]
print("the agent is", Path("/proc/1/cmdline").read_bytes().count(b"rallypoint"), flush=True)
while any(Path(f"/proc/{orphan}").exists() for orphan in orphans):  # A zombie does.
    time.sleep(0.05)
print("no orphans", flush=True)
raise SystemExit(7)
"""


def is_allowed() -> bool:
    """Whether this user may make a container."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not is_allowed(), reason="unshare --pid is not allowed here")
def test_it_waits_for_orphans_and_reports_its_workers_exit_code(machine: Machine) -> None:
    run = ("run", "--standalone", "--max-restarts", "0", machine.program(LEAVES_ORPHANS))
    argv = [*CONTAINER, sys.executable, "-c", MAIN, *run]
    agent = Process(argv, machine.env, machine.directory, "agent")
    machine.processes.append(agent)
    agent.line("the agent is [1-9]")
    agent.line("no orphans")
    assert "exited with code 7" in agent.ends(1)
