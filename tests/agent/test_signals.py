"""Signals to an agent: it departs, its workers get the signal and a grace, the others go on."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

from tests.agent.processes import Machine, alive, gone, program_with

pytestmark = pytest.mark.processes

# Ignores SIGTERM and SIGINT, and says so.
STUBBORN = program_with("""
def no(number, _):
    print("no", number, flush=True)
signal.signal(signal.SIGTERM, no)
signal.signal(signal.SIGINT, no)
signal.signal(signal.SIGHUP, no)
""")


def test_others_regroup_before_the_workers_of_a_departing_node_have_stopped(
    machine: Machine,
) -> None:
    stubborn = machine.program(STUBBORN, "stubborn.py")
    options = ("--last-call", "60")  # all are in the first round, however slowly they start
    a, b = machine.agent("a", *options), machine.agent("b", *options)
    c = machine.agent("c", "--stop-timeout", "60", *options, program=stubborn)
    for agent in (a, b):
        agent.worker(1)
    old = c.worker(1)
    c.signal(signal.SIGTERM)
    c.line("got SIGTERM: leaving the run; the workers have 60 s to stop")
    c.line("no 15")
    workers = [agent.worker(2) for agent in (a, b)]
    assert "round 1 has ended: c left: its agent got SIGTERM" in a.text
    assert alive(old.pid)
    killed_s = time.monotonic()
    c.signal(signal.SIGTERM)
    assert "second signal: killing the workers" in c.ends(143)
    assert time.monotonic() - killed_s < 30
    assert not alive(old.pid)
    for worker in workers:
        os.kill(worker.pid, signal.SIGUSR2)
    a.ends(0)
    b.ends(0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_workers_get_the_agents_signal_and_later_sigkill(
    machine: Machine, number: int, code: int
) -> None:
    stubborn = machine.program(STUBBORN)
    agent = machine.agent("a", "--stop-timeout", "3", nnodes="1", program=stubborn)
    worker = agent.worker()
    agent.signal(number)
    agent.line(f"no {int(number)}")
    agent.ends(code)
    assert not alive(worker.pid)


def test_a_worker_that_stops_in_time_is_not_killed(machine: Machine) -> None:
    code = program_with("""
def save(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
""")
    agent = machine.agent("a", nnodes="1", program=machine.program(code))
    agent.worker()
    agent.signal(signal.SIGTERM)
    assert "saved" in agent.ends(143)


def test_sigusr1_reaches_the_workers_and_not_their_children(machine: Machine) -> None:
    code = program_with("""
import subprocess
child = subprocess.Popen(["sleep", "600"])
def told(*_):
    try:
        print("child ended", child.wait(0.3), flush=True)
    except subprocess.TimeoutExpired:
        print("child lives", flush=True)
signal.signal(signal.SIGUSR1, told)
""")
    agent = machine.agent("a", "--nproc-per-node", "2", nnodes="1", program=machine.program(code))
    pids = [worker.pid for worker in agent.workers(2)]
    agent.signal(signal.SIGUSR1)
    for _ in pids:
        agent.line("child lives")
    agent.signal(signal.SIGTERM)
    agent.ends(143)
    gone(pids)


@pytest.mark.parametrize("where", ["nobody there", "waiting for others"])
def test_a_signal_ends_an_agent_that_has_no_workers_yet(machine: Machine, where: str) -> None:
    if where == "nobody there":
        agent = machine.agent("a", "--host-coordinator", "no", nnodes="2")
        agent.line("waiting: the coordinator at .* does not answer")
    else:
        agent = machine.agent("a", nnodes="2")
        agent.line("waiting: 1 of 2 nodes ready")
    agent.signal(signal.SIGTERM)
    assert agent.ends(143).count("got SIGTERM: leaving the run") == 1


def test_a_signal_that_was_ignored_when_the_agent_started_stays_ignored(machine: Machine) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        agent = machine.agent("a", nnodes="1")
    finally:
        signal.signal(signal.SIGHUP, before)
    worker = agent.worker()
    agent.signal(signal.SIGHUP)
    os.kill(worker.pid, signal.SIGUSR2)
    agent.ends(0)


def test_a_scheduler_signals_the_workers_before_their_agent(machine: Machine) -> None:
    """As Slurm and systemd do it: a departure, and no failure, which the run would not bear."""
    options = ("--last-call", "60", "--max-restarts", "0")
    a, b = machine.agent("a", *options, nnodes="1:2"), machine.agent("b", *options, nnodes="1:2")
    a.worker(1)
    signalled = b.worker(1)
    machine.freeze(b.pid)  # so that a pause of this test cannot part the two signals
    os.kill(signalled.pid, signal.SIGTERM)
    gone([signalled.pid])
    b.signal(signal.SIGTERM)
    machine.thaw(b.pid)
    b.ends(143)
    worker = a.worker(2)
    assert "b left: its agent got SIGTERM" in a.text
    os.kill(worker.pid, signal.SIGUSR2)
    a.ends(0)


def test_a_worker_ended_alone_by_sigterm_has_failed(machine: Machine) -> None:
    agent = machine.agent("a", nnodes="1")
    os.kill(agent.worker().pid, signal.SIGTERM)
    assert "rank 0 was killed by SIGTERM (signal 15)" in agent.ends(1)


def test_an_agent_leaves_in_order_when_its_terminal_closes(machine: Machine) -> None:
    """Its output is lost from then on, and the kernel signals its workers as well."""
    stays = machine.agent("a", "--last-call", "60", nnodes="1:2")
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-c", machine.main, "run", "--node-name", "b", "--nnodes", "1:2"]
    argv += ["--endpoint", machine.endpoint, "--run-id", "test", "--last-call", "60"]
    leaves = subprocess.Popen(
        [*argv, "--host-coordinator", "no", machine.program()],
        env=machine.env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        shown = b""
        while (found := re.search(rb"worker 1 \d+ 2 (\d+)\r", shown)) is None:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 65_536)
        stays.worker(1)
        os.close(ours)
        assert leaves.wait(60) == 129
        gone([int(found[1])])
    finally:
        leaves.kill()
        leaves.wait()
    worker = stays.worker(2)
    assert "round 1 has ended: b left: its agent got SIGHUP" in stays.text
    os.kill(worker.pid, signal.SIGUSR2)
    stays.ends(0)
