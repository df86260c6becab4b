"""Departures that are agreed: all workers stop at one step, and no step is lost (R14)."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.processes import Machine, Process

pytestmark = pytest.mark.processes

# Each step is a collective: a rank that stopped alone would leave the others there.
TRAINER = """
import os, sys, time
import rallypoint

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

saved = os.environ["SAVED"]
with rallypoint.join() as run:
    for world in run.worlds():
        with world:
            if world.rank == 0:
                world.claim(saved)
            world.barrier("claimed")
            first = step = int(open(saved).read()) if os.path.exists(saved) else 0
            say("round", world.number, "of", world.size, "from", step)
            has_said = False
            while not world.change:
                if world.drain and not has_said:
                    has_said = True
                    say("drain of", *world.drain.nodes, "for", world.drain.reason)
                if world.should_yield(step) if ASKS else False:
                    say("yields at", step)
                    if world.rank == 0:
                        with world.fenced(saved) as file:
                            file.write(str(step).encode())
                    world.barrier("saved")
                    break
                world.barrier(f"step {step}")
                step += 1
                if step == first + 5:
                    say("trains in", world.number)
                time.sleep(0.005)
say("over")
"""
OPTIONS = ("--last-call", "60", "--nproc-per-node", "2")


def three(machine: Machine, *more: str, asks: bool = True) -> list[Process]:
    """Three agents at work. `more`: options of the last one."""
    program = machine.program(TRAINER.replace("ASKS", str(asks)), "trainer.py")
    env = {"SAVED": str(machine.directory / "saved")}
    agents = [
        machine.agent(name, *OPTIONS, *(more if name == "c" else ()), program=program, env=env)
        for name in "abc"
    ]
    for agent in agents:
        agent.line("trains in 1")
    return agents


def agreed(agents: list[Process], reason: str) -> None:
    """All six workers have stopped at one step, from which the other four have gone on."""
    a, b, _ = agents
    for agent in (a, b):
        agent.line("trains in 2")
    steps = [re.findall(r"yields at (\d+)", agent.text) for agent in agents]
    assert [len(each) for each in steps] == [2, 2, 2], steps
    assert len({step for each in steps for step in each}) == 1, steps
    for agent in (a, b):
        assert re.findall(r"round 2 of 4 from (\d+)", agent.text) == steps[0]
        assert len(re.findall(rf"drain of c for {reason}", agent.text)) == 2


def test_a_node_that_gets_sigterm_leaves_at_a_step_on_which_all_agree(machine: Machine) -> None:
    agents = three(machine)
    agents[2].signal(signal.SIGTERM)
    agreed(agents, "its agent got SIGTERM")
    agents[2].ends(143)


def test_a_drained_node_leaves_at_such_a_step(machine: Machine) -> None:
    agents = three(machine)
    where = ("--endpoint", f"http://{machine.endpoint}")
    command = [sys.executable, "-m", "rallypoint", "drain", "test", "c", *where]
    subprocess.run([*command, "--reason", "new kernel"], check=True, timeout=60)
    agreed(agents, ".*new kernel")
    agents[2].ends(0)


@pytest.mark.parametrize("kind", ["--notice-file", "--notice-command"])
def test_a_node_with_a_notice_leaves_at_such_a_step(
    machine: Machine, tmp_path: Path, kind: str
) -> None:
    notice = tmp_path / "notice"
    source = str(notice) if kind == "--notice-file" else f"cat {notice}"
    agents = three(machine, kind, source)
    notice.write_text("spot: gone in 120 s\n")
    agreed(agents, "a notice .*: spot: gone in 120 s")
    agents[2].ends(0)


def test_without_workers_that_ask_a_node_leaves_as_before(machine: Machine) -> None:
    a, _, c = three(machine, asks=False)
    c.signal(signal.SIGTERM)
    a.line("round 1 has ended: c left: its agent got SIGTERM")
    c.ends(143)
    assert "yields" not in a.text


# A program that is its own node. Its thread promises, whatever the program does; but that of a
# process that is stopped does not.
NATIVE = """
import os, sys, time
import rallypoint

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

with rallypoint.join("test", ENDPOINT, node_name=sys.argv[1], min_nodes=2, max_nodes=3) as run:
    for world in run.worlds():
        say("world", world.number, "of", world.size)
        step, known = 0, None
        with world:
            while not world.change:
                known = known or world.drain
                if world.should_yield(step):
                    say("yields at", step)
                step += 1
                if step == 5:
                    say("trains in", world.number)
                time.sleep(0.005)
        if known:
            say("out of it with", round(known.left_s, 1), "s left:", world.change.kind.value)
say("over")
"""


def test_a_native_node_leaves_at_its_deadline_if_another_never_promises(machine: Machine) -> None:
    program = NATIVE.replace("ENDPOINT", repr(machine.endpoint))
    path = machine.program(program, "native.py")
    machine.main = (
        f"import runpy, sys; sys.argv[0] = {path!r}; runpy.run_path({path!r}, None, '__main__')"
    )
    # The stopped process is lost much later.
    env = {"RALLYPOINT_LOST_AFTER": "600", "RALLYPOINT_LAST_CALL": "60"}
    own = {"RALLYPOINT_EXPECTED_NODES": "3", "RALLYPOINT_HOST_COORDINATOR": "no"}
    host = machine.command("host", env=env | own | {"RALLYPOINT_HOST_COORDINATOR": "yes"})
    stopped = machine.command("stopped", env=env | own)
    leaving = machine.command("leaving", env=env | own | {"RALLYPOINT_DRAIN_TIMEOUT": "3"})
    for each in (host, stopped, leaving):
        each.line("trains in 1")
    machine.freeze(stopped.pid)
    where = ("--endpoint", f"http://{machine.endpoint}")
    command = [sys.executable, "-m", "rallypoint", "drain", "test", "leaving", *where]
    subprocess.run(command, check=True, timeout=60)
    leaving.line("leaving the run within 3 s")
    # Its step waits for the decision until then.
    leaving.line("out of it with 0.0 s left: node_left")
    leaving.line("over")
    leaving.ends(0)
    host.line("out of it with .* left: node_left")
    machine.thaw(stopped.pid)
    host.line("world 2 of 2")
    assert "yields" not in host.text + stopped.text + leaving.text
