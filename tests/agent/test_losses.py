"""What the others do when a node or a worker is lost."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.agent.processes import MAIN, Machine, alive, gone, program_with, signal_all

pytestmark = pytest.mark.processes

# Ends 100 ms after the others, and only its own words tell why.
CULPRIT = """
import os, signal, sys, time
name = os.environ["RALLYPOINT_NODE"]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", os.getpid(), flush=True)
signal.sigwait([signal.SIGUSR1])
if name == "culprit":
    time.sleep(0.1)
    raise ValueError("bad batch in shard 7")
raise ConnectionResetError(104, "Connection reset by peer")
"""
# On a machine that does much else it may take longer to end than the half second and the second
# for which consequences alone are known: a test of what comes last waits for it.
PATIENT = "from rallypoint.launch import round_workers; round_workers.CULPRIT_S = 20.0; " + MAIN
PATIENT_RUN = ("--set", "probe=20")


def test_after_a_killed_agent_survivors_regroup_and_its_workers_are_gone(machine: Machine) -> None:
    options = ("--nproc-per-node", "2", "--last-call", "60")  # all are in the first round
    agents = [machine.agent(name, *options) for name in ("a", "b", "c")]
    before = {agent.name: agent.workers(2, 1) for agent in agents}
    victim, survivors = agents[1], [agents[0], agents[2]]

    killed_s = time.monotonic()
    victim.signal(signal.SIGKILL)
    told = survivors[1].line(r"round 1 has ended: (\w) lost")
    # At once; but if this machine stalled just then, the coordinator gives the grace of 5 s.
    assert time.monotonic() - killed_s < 5 + 4
    assert told[1] == victim.name
    survivors[0].line(r"round 1 has ended: (\w) lost")
    after = {agent.name: agent.workers(2, 2) for agent in survivors}
    assert time.monotonic() - killed_s < 15  # silence alone takes 30 s, a last call 60

    gone([worker.pid for worker in before[victim.name]])
    assert all(worker.size == 4 for workers in after.values() for worker in workers)
    ranks = [worker.rank for workers in after.values() for worker in workers]
    assert sorted(ranks) == [0, 1, 2, 3]
    for name, workers in after.items():
        before_ranks = [worker.rank for worker in before[name]]
        assert [worker.rank for worker in workers] == before_ranks or before_ranks == [4, 5]
    for workers in after.values():
        for worker in workers:
            os.kill(worker.pid, signal.SIGUSR2)
    for agent in survivors:
        assert "has succeeded" in agent.ends(0)


def test_a_killed_worker_ends_the_run_with_the_same_cause_everywhere(machine: Machine) -> None:
    agents = [machine.agent(name, nnodes="2") for name in ("a", "b")]
    workers = {agent.name: agent.worker() for agent in agents}
    os.kill(workers["b"].pid, signal.SIGKILL)
    for agent in agents:
        text = agent.ends(1)
        assert "a worker failed on b" in text
        assert f"rank {workers['b'].rank} was killed by SIGKILL (signal 9)" in text
        assert "the run allows no restarts" in text
    gone(worker.pid for worker in workers.values())


def test_the_restart_budget_is_one_for_the_run(machine: Machine) -> None:
    agents = [machine.agent(name, "--max-restarts", "1", nnodes="2") for name in ("a", "b")]
    first = {agent.name: agent.worker(1) for agent in agents}
    os.kill(first["a"].pid, signal.SIGKILL)
    second = {agent.name: agent.worker(2) for agent in agents}
    os.kill(second["b"].pid, signal.SIGUSR1)
    for agent in agents:
        text = agent.ends(1)
        assert "the run's restart budget (--max-restarts 1) is spent" in text
        assert "bad batch in shard 7" in text
        assert "  | ValueError: bad batch in shard 7" in text


def test_the_cause_is_found_although_communication_errors_come_first(machine: Machine) -> None:
    machine.main = PATIENT
    program = machine.program(CULPRIT)
    names = ("a", "b", "culprit")
    agents = [machine.agent(name, *PATIENT_RUN, nnodes="3", program=program) for name in names]
    pids = [int(agent.line(r"ready (\d+)")[1]) for agent in agents]
    signal_all(pids, signal.SIGUSR1)
    for agent in agents:
        text = agent.ends(1)
        assert "error: run 'test' has ended: failed: a worker failed on culprit" in text
        assert "  | ValueError: bad batch in shard 7" in text
        assert "the last lines of rank" in text


def test_a_workers_output_stays_on_its_node_if_it_shares_no_lines(machine: Machine) -> None:
    """Its own console has it: that is the worker's stderr."""
    machine.main = PATIENT
    program = machine.program(CULPRIT)
    names = ("a", "b", "culprit")
    options = (*PATIENT_RUN, "--share-lines", "0")
    agents = [machine.agent(name, *options, nnodes="3", program=program) for name in names]
    pids = [int(agent.line(r"ready (\d+)")[1]) for agent in agents]
    signal_all(pids, signal.SIGUSR1)
    for name, agent in zip(names, agents, strict=True):
        text = agent.ends(1)
        assert "error: run 'test' has ended: failed: a worker failed on culprit" in text
        assert "ValueError (its text stays on its node: share_lines is 0)" in text
        assert "the last lines of" not in text
        assert ("bad batch in shard 7" in text) == (name == "culprit")


def test_the_cause_may_be_another_worker_of_the_same_node(machine: Machine) -> None:
    code = CULPRIT.replace('name == "culprit"', 'os.environ["LOCAL_RANK"] == "0"')
    machine.main = PATIENT
    options = ("--nproc-per-node", "3", *PATIENT_RUN)
    agent = machine.agent("a", *options, nnodes="1", program=machine.program(code))
    pids = [int(agent.line(r"ready (\d+)")[1]) for _ in range(3)]  # before the first of them fails
    signal_all(pids, signal.SIGUSR1)
    text = agent.ends(1)
    assert "ValueError: bad batch" in text.rpartition("error: run")[2], text


def test_a_program_that_fails_on_every_node_at_once_is_charged_once(machine: Machine) -> None:
    agents = [machine.agent(name, "--max-restarts", "1", nnodes="2") for name in ("a", "b")]
    signal_all([agent.worker(1).pid for agent in agents], signal.SIGUSR1)
    for worker in [agent.worker(2) for agent in agents]:
        os.kill(worker.pid, signal.SIGUSR2)
    for agent in agents:
        agent.ends(0)


def test_workers_that_ignore_sigterm_are_killed_when_the_run_regroups(machine: Machine) -> None:
    program = machine.program(program_with("signal.signal(signal.SIGTERM, signal.SIG_IGN)"))
    options = ("--max-restarts", "1", "--regroup-stop-timeout", "0.3")
    agents = [machine.agent(name, *options, nnodes="2", program=program) for name in ("a", "b")]
    first = [agent.worker(1) for agent in agents]
    os.kill(first[0].pid, signal.SIGKILL)
    second = [agent.worker(2) for agent in agents]
    assert not alive(first[1].pid)
    for worker in second:
        os.kill(worker.pid, signal.SIGUSR2)
    for agent in agents:
        agent.ends(0)
