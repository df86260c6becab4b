"""Workers that stay, with torch: a frozen peer whose collective has to be ended from outside."""

from __future__ import annotations

import os
import signal

import pytest

from tests.agent.processes import Machine, is_stopped
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.torch,
    pytest.mark.verify,
    pytest.mark.timeout(300),
]

PROGRAM = """
import os, signal, time
import torch
import torch.distributed as dist
import rallypoint
import rallypoint.torch

torch.set_num_threads(1)
stops = []
signal.signal(signal.SIGUSR1, lambda *_: stops.append(True))
with rallypoint.join() as run:
    for world in run.worlds():
        with world, rallypoint.torch.process_group(world):
            one = torch.ones(1)
            dist.all_reduce(one)
            said = f"world {world.number} {world.rank} {one.item():.0f} {os.getpid()}\\n"
            os.write(1, said.encode())
            while not world.change:
                dist.all_reduce(one)
                time.sleep(0.02)
                if stops:
                    os.kill(os.getpid(), signal.SIGSTOP)
                    stops.clear()
                    ends_s = time.monotonic() + 60
                    while not world.change and time.monotonic() < ends_s:
                        time.sleep(0.01)
"""


def test_survivors_of_a_frozen_node_keep_their_processes(machine: Machine) -> None:
    pytest.importorskip("torch")
    options = (
        *("--keep-workers", "--expected-nodes", "3", "--last-call", "60"),
        *("--set", "suspect_after=2s", "--set", "lost_after=6s"),
        *("--set", "unwind=60s"),  # A busy machine may need longer than the usual time.
    )
    program = machine.program(PROGRAM)
    agents = [machine.agent(n, *options, nnodes="2:3", program=program) for n in ("a", "b", "c")]
    first = [agent.line(r"world 1 \d 3 (\d+)")[1] for agent in agents]
    # Its worker stops between two collectives. In one, gloo may hang when the worker goes on: it
    # does not end a send that had begun before it saw the end of the connection.
    os.kill(int(first[2]), signal.SIGUSR1)
    wait_until(lambda: is_stopped(int(first[2])))
    machine.freeze(agents[2].pid, int(first[2]))
    # They wait in a collective, which is ended one second after the world.
    assert [agent.line(r"world 2 \d 2 (\d+)")[1] for agent in agents[:2]] == first[:2]
    # The one that was lost comes back, with its process.
    machine.thaw(int(first[2]), agents[2].pid)
    assert [agent.line(r"world 3 \d 3 (\d+)")[1] for agent in agents] == first
    for agent in reversed(agents):
        agent.signal(signal.SIGTERM)
        agent.ends(143)
