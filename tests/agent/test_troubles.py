"""Programs that do not start, consoles and disks that do not answer, and kills at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.agent.processes import Machine, gone, program_with
from tests.waiting import wait_until

pytestmark = pytest.mark.processes


def script(directory: Path, text: str, mode: int) -> str:
    path = directory / "program.sh"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_missing_program_exits_with_2_before_any_meeting(machine: Machine) -> None:
    text = machine.agent("a", "--host-coordinator", "no", program="none.py").ends(2)
    assert "error: cannot run 'none.py': no such program" in text
    assert "hint: " in text


def test_a_program_that_cannot_be_executed_exits_with_2(machine: Machine) -> None:
    program = script(machine.directory, "#!/bin/sh\n", 0o644)
    text = machine.agent("a", "--no-python", "--host-coordinator", "no", program=program).ends(2)
    assert "not executable" in text


def test_the_others_learn_of_a_node_that_cannot_start_its_workers(machine: Machine) -> None:
    program = script(machine.directory, "#!/no/such/interpreter\n", 0o755)
    a = machine.agent("a", nnodes="1:2")
    a.worker(1)
    b = machine.agent("b", "--no-python", "--nproc-per-node", "2", nnodes="1:2", program=program)
    text = b.ends(2)
    assert f"error: cannot run '{program}': No such file" in text
    assert "hint: check the path, also that of the interpreter" in text
    worker = a.worker(3)
    assert "b left: its workers cannot be started" in a.text
    os.kill(worker.pid, signal.SIGUSR2)
    a.ends(0)


def test_an_unwritable_log_directory_exits_with_2(machine: Machine) -> None:
    text = machine.agent("a", "--log-dir", "/proc/none", nnodes="1").ends(2)
    assert "error: cannot write logs to '/proc/none': " in text


def test_logs_go_to_files_and_with_tee_to_the_console(machine: Machine) -> None:
    code = 'import sys; print("to stdout", flush=True); print("to stderr", file=sys.stderr)'
    logs = machine.directory / "logs"
    for tee in ("--tee", "--no-tee"):
        options = ("--node-name", "a", "--run-id", "test", "--log-dir", str(logs / tee), tee)
        agent = machine.command("run", "--standalone", *options, machine.program(code))
        text = agent.ends(0)
        assert ("[a:0] to stdout" in text) == ("[a:0] to stderr" in text) == (tee == "--tee")
        assert "has succeeded" in text
        where = logs / tee / "test" / "round-1"
        assert (where / "rank-0.out").read_text() == "to stdout\n"
        assert (where / "rank-0.err").read_text() == "to stderr\n"


def test_a_full_disk_ends_the_log_file_but_not_the_run(machine: Machine) -> None:
    code = 'print("x" * 5000, flush=True); print("still there", flush=True)'
    argv = ("ulimit -f 1; trap '' XFSZ; exec \"$@\"", "sh", sys.executable, "-m", "rallypoint")
    options = ("--standalone", "--log-dir", str(machine.directory / "logs"))
    done = subprocess.run(
        ["sh", "-c", *argv, "run", *options, machine.program(code)],
        env=machine.env,
        cwd=machine.directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "still there" in done.stdout
    assert "the workers continue, but this log file is incomplete" in done.stderr


FILLS_THE_CONSOLE = program_with("""
import select
while select.select([], [1], [], 0.3)[1]:
    os.write(1, b"x" * 1_000)
sys.stdout = open(os.environ["TOLD"], "w")
""")


def test_a_console_that_hangs_delays_nothing(machine: Machine) -> None:
    """Its output is not read, and its worker fills it: the agent still sends heartbeats."""
    quick = ("--set", "suspect_after=3", "--set", "lost_after=3")
    told = machine.directory / "told"
    a = machine.agent("a", *quick, nnodes="2")
    program = machine.program(FILLS_THE_CONSOLE, "fills.py")
    env = {"TOLD": str(told)}
    b = machine.agent("b", *quick, nnodes="2", program=program, read=False, env=env)
    mine = a.worker(1)
    wait_until(lambda: told.exists() and told.read_text().endswith("\n"))
    ends_s = time.monotonic() + 6  # twice as long as what makes a silent node lost
    while time.monotonic() < ends_s:
        status = machine.command("status", "test", "--endpoint", machine.endpoint, "--json")
        text = status.ends(0)
        assert text.count("connected") == 2, text
    assert "has ended" not in a.text
    b.read_on()
    os.kill(int(told.read_text().split()[-1]), signal.SIGUSR2)
    os.kill(mine.pid, signal.SIGUSR2)
    a.ends(0)
    b.ends(0)


@pytest.mark.verify
@pytest.mark.timeout(300)
def test_agents_killed_at_any_moment_leave_nothing_behind(machine: Machine) -> None:
    """From before the first worker to after the last: 20 of them, a few at a time."""
    marks = machine.directory / "pids"
    marks.mkdir()
    code = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
for pid in (os.getpid(), child.pid):
    pathlib.Path(os.environ["PIDS"], str(pid)).touch()
print("worker up", flush=True)
time.sleep(600)
"""
    program, moments = machine.program(code), random.Random(7)
    for _ in range(5):
        agents = [
            machine.command(
                "run", "--standalone", "--nproc-per-node", "2", program, env={"PIDS": str(marks)}
            )
            for _ in range(4)
        ]
        agents[0].line("worker up")
        for agent in agents[1:]:
            try:
                agent.popen.wait(moments.uniform(0, 0.1))
            except subprocess.TimeoutExpired:
                agent.signal(signal.SIGKILL)
        agents[0].signal(signal.SIGKILL)
        for agent in agents:
            agent.popen.wait()
    assert list(marks.iterdir())
    gone(int(mark.name) for mark in marks.iterdir())
