"""Agents with --check: who stays out, who is let in, and what is said."""

from __future__ import annotations

import os
import signal

import pytest

from tests.agent.processes import Machine, gone
from tests.waiting import wait_until

pytestmark = pytest.mark.processes


def test_a_single_node_goes_on_with_a_warning_though_its_check_fails(machine: Machine) -> None:
    options = ("--node-name", "a", "--run-id", "test", "--check", "echo GPU 3 fell off; exit 1")
    agent = machine.command("run", "--standalone", *options, machine.program("print('trained')"))
    text = agent.ends(0)
    assert "warning: its check failed: GPU 3 fell off" in text
    assert "trained" in text


def test_a_node_whose_check_fails_stays_out_until_it_passes(machine: Machine) -> None:
    broken = machine.directory / "broken"
    broken.write_text("")
    shared = ("--max-restarts", "3", "--cooldown", "1s:2s")
    check = f"test ! -e {broken} || {{ echo GPU 3 fell off; exit 1; }}"
    a = machine.agent("a", *shared, nnodes="1:2")
    first = a.worker(1)
    b = machine.agent("b", *shared, "--check", check, nnodes="1:2")
    b.line("a round is running, and this node stays out of it, its check failed: GPU 3 fell off")
    assert not gone_now(first.pid)
    broken.unlink()
    b.line("the check of this node has passed")
    workers = [agent.worker(2) for agent in (a, b)]
    for worker in workers:
        os.kill(worker.pid, signal.SIGUSR2)
    for agent in (a, b):
        agent.ends(0)


def gone_now(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_check_that_hangs_ends_with_its_agent(machine: Machine) -> None:
    pids = machine.directory / "pids"
    check = f"echo $$ > {pids}; echo checking; sleep 600"
    options = ("--node-name", "a", "--run-id", "test", "--check", check, "--check-timeout", "9m")
    agent = machine.command("run", "--standalone", *options, machine.program())
    wait_until(lambda: pids.exists() and pids.read_text().strip() != "")
    agent.popen.kill()
    gone([int(pids.read_text())])
