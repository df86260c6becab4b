"""The node that hosts the coordinator, and what becomes of the others without it."""

from __future__ import annotations

import os
import signal

import pytest

from tests.agent.processes import Machine, Process, Worker, alive
from tests.ports import free_port

pytestmark = pytest.mark.processes


def host_and_other(machine: Machine, *options: str, nnodes: str = "1:2") -> tuple[Process, Process]:
    """Two agents, the first of which hosts the coordinator."""
    if nnodes == "1:2":  # both are in the first round, however slowly they start
        options = ("--expected-nodes", "2", "--last-call", "60", *options)
    host = machine.agent("host", *options, nnodes=nnodes)
    return host, machine.agent("other", *options, nnodes=nnodes)


def finish(worker: Worker) -> None:
    os.kill(worker.pid, signal.SIGUSR2)


def test_a_host_that_finishes_first_waits_for_the_others(machine: Machine) -> None:
    host, other = host_and_other(machine)
    mine, others = host.worker(), other.worker()
    finish(mine)
    host.line("all workers of this node have finished")
    assert alive(others.pid)
    finish(others)
    assert "has succeeded" in other.ends(0)
    assert "has succeeded" in host.ends(0)


def test_a_host_that_gets_a_signal_stays_until_the_run_ends(machine: Machine) -> None:
    host, other = host_and_other(machine)
    host.worker(1)
    other.worker(1)
    host.signal(signal.SIGTERM)
    host.line("hosts the coordinator of run 'test' and stays")
    finish(other.worker(2))
    assert "has succeeded" in other.ends(0)
    host.ends(143)


def test_a_second_signal_ends_a_host_that_stays(machine: Machine) -> None:
    options = ("--set", "coordinator_lost_after=0.5")
    host, other = host_and_other(machine, *options)
    host.worker(1)
    other.worker(1)
    host.signal(signal.SIGTERM)
    host.line("hosts the coordinator of run 'test' and stays")
    worker = other.worker(2)
    host.signal(signal.SIGTERM)
    assert "second signal: stopping the coordinator hosted here too" in host.ends(143)
    other.line("warning: the coordinator of run 'test' is lost .*; the workers continue")
    assert alive(worker.pid)
    finish(worker)
    assert "the end of the run is unknown" in other.ends(0)


def test_without_its_coordinator_a_run_continues_until_it_needs_a_round(
    machine: Machine,
) -> None:
    options = ("--set", "coordinator_lost_after=0.5", "--max-restarts", "3")
    host, other = host_and_other(machine, *options, nnodes="2")
    host.worker(1)
    worker = other.worker(1)
    host.signal(signal.SIGKILL)
    other.line("warning: the coordinator of run 'test' is lost")
    assert alive(worker.pid)
    os.kill(worker.pid, signal.SIGUSR1)
    text = other.ends(4)
    assert "bad batch in shard 7" in text
    assert "error: the coordinator of run 'test' is lost" in text
    assert "\nhint: " in text


def test_a_restarted_coordinator_has_lost_the_run(machine: Machine) -> None:
    port = free_port()
    serve = machine.command("serve", "--host", "127.0.0.1", "--port", str(port))
    endpoint = serve.line(r"^(http://\S+)")[1]
    agents = [machine.agent(name, nnodes="2", endpoint=endpoint) for name in ("a", "b")]
    workers = [agent.worker(1) for agent in agents]
    serve.signal(signal.SIGKILL)
    serve.popen.wait()
    machine.command("serve", "--host", "127.0.0.1", "--port", str(port))
    for agent in agents:
        agent.line("warning: run 'test' was lost .*; the workers continue.*in (10|9) min")
    finish(workers[0])
    os.kill(workers[1].pid, signal.SIGUSR1)
    agents[0].ends(0)
    text = agents[1].ends(4)
    assert "error: run 'test' was lost with the coordinator" in text
    assert "hint: start all nodes of the run again" in text
