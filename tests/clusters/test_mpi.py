"""Agents that a real mpirun starts, one on each host."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.agent.processes import Process
from tests.clusters.hosts import Hosts, need
from tests.clusters.programs import STEADY

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(240)]
Make = Callable[..., Hosts]
RUN = ("rallypoint", "run")


@pytest.fixture
def made(make_hosts: Make) -> Hosts:
    need({"mpirun": "openmpi-bin"})
    hosts = make_hosts("n1", "n2", "n3")
    (hosts.folder / "steady.py").write_text(STEADY)
    return hosts


def mpirun(hosts: Hosts, *options: str) -> list[str]:
    """mpirun on n1, with one agent on each host; `rsh` takes ssh's place."""
    agent = ("--mca", "plm_rsh_agent", hosts.rsh(), "--host", "n1,n2,n3", "-N", "1")
    return ["mpirun", "--allow-run-as-root", *options, *agent, "-x", "PATH", "-x", "PYTHONPATH"]


def test_they_meet(made: Hosts) -> None:
    job = made.start("n1", *mpirun(made), *RUN, "steady.py")
    said = [job.line("of 3 works in round 1 of").string for _ in range(3)]
    (made.folder / "finish").touch()
    job.ends(0)
    for number in range(3):
        assert any(f"worker {number} of 3 works" in each for each in said), said


class TestAHostIsKilled:
    NODES = ("--nnodes", "2:3")

    def start(self, made: Hosts, *options: str) -> Process:
        job = made.start("n1", *mpirun(made, *options), *RUN, *self.NODES, "steady.py")
        for _ in range(3):
            job.line("of 3 works in round 1 of")
        return job

    def test_with_enable_recovery_the_run_goes_on(self, made: Hosts) -> None:
        job = self.start(made, "--enable-recovery")
        made["n3"].halt()
        for _ in range(2):
            job.line("of 2 works in round 2 of")
        (made.folder / "finish").touch()
        for _ in range(2):
            job.line("run '.*' has succeeded: finished")
        # mpirun waits for the process of n3, which can no longer end: docs/clusters.md.
        job.signal(signal.SIGTERM)
        job.code()

    def test_without_it_mpirun_ends_all(self, made: Hosts) -> None:
        job = self.start(made)
        made["n3"].halt()
        assert job.code()
        assert "works in round 2" not in job.text


def test_an_agent_is_killed_and_mpirun_ends_with_the_run(made: Hosts) -> None:
    nodes = ("--nnodes", "2:3")
    job = made.start("n1", *mpirun(made, "--enable-recovery"), *RUN, *nodes, "steady.py")
    for _ in range(3):
        job.line("of 3 works in round 1 of")
    [agent] = made["n3"].pids("rallypoint", "run")
    os.kill(agent, signal.SIGKILL)
    for _ in range(2):
        job.line("of 2 works in round 2 of")
    (made.folder / "finish").touch()
    job.code()
    job.rewind()
    job.line("run '.*' has succeeded: finished")
