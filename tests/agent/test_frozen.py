"""An agent that is stopped (SIGSTOP) for a while, alone or with its workers."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.agent.processes import Machine, Process, gone
from tests.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.verify]

# All are in the first round, however slowly they start; and nobody whom the machine holds up for a
# second is taken for one that is frozen.
QUICK = ("--set", "suspect_after=2", "--max-restarts", "any", "--last-call", "60")


def suspect(machine: Machine, name: str) -> None:
    """Wait until the coordinator has not heard from this node for a while."""
    status = ("status", "test", "--endpoint", machine.endpoint, "--json")

    def is_silent() -> bool:
        told = json.loads(machine.command(*status).ends(0))
        return any(m["name"] == name and m["link"] == "silent" for m in told["members"])

    wait_until(is_silent)


@pytest.mark.parametrize("with_workers", [False, True])
def test_a_frozen_node_is_lost_when_needed_and_returns_later(
    machine: Machine, with_workers: bool
) -> None:
    a, b, c = (machine.agent(name, *QUICK, nnodes="2:3") for name in ("a", "b", "c"))
    first = {agent.name: agent.worker(1) for agent in (a, b, c)}
    machine.freeze(c.pid, *([first["c"].pid] if with_workers else []))
    suspect(machine, "c")
    assert a.popen.poll() is None
    assert "has ended" not in a.text

    failed_s = time.monotonic()
    os.kill(first["a"].pid, signal.SIGUSR1)
    second = {agent.name: agent.worker(2) for agent in (a, b)}
    assert time.monotonic() - failed_s < 10  # by the probe: silence alone takes 30 s
    assert "c lost: it fell silent and did not answer" in a.text

    # R13: it learns that it was lost, and stops its workers before it is a newcomer.
    machine.thaw(c.pid, first["c"].pid)
    c.line("round 1 has ended: .*c lost|round 1 has ended: a worker failed on a")
    third = {agent.name: agent.worker(3) for agent in (a, b, c)}
    gone([first["c"].pid])
    assert "c joined" in a.text
    for agent in (a, b):
        assert third[agent.name].rank == second[agent.name].rank
    for worker in third.values():
        os.kill(worker.pid, signal.SIGUSR2)
    for agent in (a, b, c):
        agent.ends(0)


def test_a_newer_agent_replaces_a_frozen_one(machine: Machine) -> None:
    a, b = (machine.agent(name, *QUICK, nnodes="1:2") for name in ("a", "b"))
    a.worker(1)
    old = b.worker(1)
    machine.freeze(b.pid)
    again: Process = machine.agent("b", *QUICK, nnodes="1:2")
    a.line("round 1 has ended: b lost: superseded by a newer start")
    again.worker()
    machine.thaw(b.pid)
    assert "a newer start of node 'b' has taken its place" in b.ends(3)
    gone([old.pid])
