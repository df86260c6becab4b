"""Workers that do not advance: the round ends in time, and says who stands where."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.agent.processes import Machine, Process, program_with
from tests.waiting import wait_until

pytestmark = pytest.mark.processes

JOINED = """
import time
import rallypoint

def load():
    time.sleep(600)

with rallypoint.join() as run:
    world = run.next_world()
    for step in range(3):
        world.progress(step)
        world.barrier(f"step {step}")
    if world.rank == 1:
        load()
    world.barrier("the end", 600)
"""
STEPS = program_with("""
import threading

def count():
    for step in range(10**9):
        say(f"step={step} loss=0.5")
        time.sleep(0.05)

threading.Thread(target=count, daemon=True).start()
""")
TOUCHES = program_with("""
for each in "abc":
    open("touched", "a").write(each)
    time.sleep(1.5)
    print(each, flush=True)
""")
QUICK = ("--set", "suspect_after=3")


def end_by_hang(process: Process) -> str:
    """The line that says why the run has ended."""
    process.ends(1)
    lines = [line for line in process.text.splitlines() if "failed: " in line]
    assert lines, process.text
    assert "no worker has advanced for" in lines[-1]
    return lines[-1]


def test_a_worker_that_hangs_is_named_with_its_place(machine: Machine) -> None:
    program = machine.program(JOINED, "joined.py")
    options = ("--hang-timeout", "3s", *QUICK)
    a = machine.agent("a", *options, nnodes="2", program=program)
    b = machine.agent("b", *options, nnodes="2", program=program)
    text = end_by_hang(a)
    b.ends(1)
    assert "no worker has advanced for 3 s" in text
    lines = JOINED.splitlines()
    load, barrier = (
        1 + next(i for i, line in enumerate(lines) if each in line) for each in ("(600)", "the end")
    )
    guilty, other = ("a", "b") if "a: rank 1" in text else ("b", "a")
    assert f"{guilty}: rank 1 hangs" in text
    assert f"{other} rank 0 in barrier (joined.py:{barrier})" in text
    assert f"{guilty} rank 1 in load (joined.py:{load})" in text


def test_the_stacks_of_all_ranks_are_kept_after_the_run_has_ended(
    machine: Machine, tmp_path: Path
) -> None:
    program = machine.program(JOINED, "joined.py")
    ledger = f"file:{tmp_path}/ledger"
    options = ("--hang-timeout", "3s", *QUICK)
    a, b = (
        machine.agent(name, *options, nnodes="2", endpoint=ledger, program=program) for name in "ab"
    )
    end_by_hang(a)
    b.ends(1)
    shown = machine.command("stacks", "test", "--last", "--endpoint", ledger).ends(0)
    assert "rank 0 in barrier (joined.py:" in shown
    assert "rank 1 in load (joined.py:" in shown
    # The innermost frame of the main thread comes first, below the name of its thread.
    blocks = [block.splitlines() for block in shown.split("\n\n")[1:]]
    assert "load" in [block[2].rpartition(" in ")[2] for block in blocks]
    found = machine.command("stacks", "test", "--last", "--json", "--endpoint", ledger).ends(0)
    assert '"round": 1' in found


def test_a_stopped_worker_is_named_as_such(machine: Machine) -> None:
    program = machine.program(STEPS, "steps.py")
    options = ("--hang", r"step=(\d+)", "--hang-timeout", "6s", *QUICK)
    a = machine.agent("a", *options, nnodes="1", program=program)
    worker = a.worker(1)
    a.line("step=50 ")
    machine.freeze(worker.pid)
    assert "stopped by a signal" in end_by_hang(a)


def test_a_run_whose_output_shows_progress_goes_on(machine: Machine) -> None:
    program = machine.program(STEPS, "steps.py")
    # A worker that writes 20 times a second gets no processor for so long on a busy machine only.
    options = ("--hang", r"step=(\d+)", "--hang-timeout", "5s", *QUICK)
    a = machine.agent("a", *options, nnodes="1", program=program)
    worker = a.worker(1)
    a.line("step=130 ")
    os.kill(worker.pid, signal.SIGUSR2)
    assert "advanced" not in a.ends(0)


@pytest.mark.parametrize("rule", ["output", "file:touched"])
def test_silence_and_an_untouched_file_are_hangs(machine: Machine, rule: str) -> None:
    program = machine.program(TOUCHES, "touches.py")
    a = machine.agent("a", "--hang", rule, "--hang-timeout", "4s", nnodes="1", program=program)
    end_by_hang(a)


def test_a_pattern_that_never_matches_is_said_once_and_ends_nothing(machine: Machine) -> None:
    program = machine.program(STEPS, "steps.py")
    options = ("--hang", r"iter (\d+)", "--hang-timeout", "4s", *QUICK)
    a = machine.agent("a", *options, nnodes="1", program=program)
    worker = a.worker(1)
    line = a.line("warning: --hang: ")
    # On a busy machine the worker may have yet to write its first line.
    assert "step=" in line.string or "have written no line" in line.string
    a.line("step=100 ")
    os.kill(worker.pid, signal.SIGUSR2)
    text = a.ends(0)
    assert text.count("warning: --hang") == 1
    assert "advanced" not in text


def test_a_pattern_that_takes_too_long_for_a_line_stops_no_agent(machine: Machine) -> None:
    """Python's own re would search for years, and keep its lock: the node would be lost."""
    setup = """
import threading

def write():
    while True:
        say("a" * 60 + "b")
        time.sleep(0.05)

threading.Thread(target=write, daemon=True).start()
"""
    program = machine.program(program_with(setup), "writes.py")
    options = ("--hang", "^(?:a|aa)+$", "--hang-timeout", "4s", *QUICK)
    a = machine.agent("a", *options, nnodes="1", program=program)
    a.line(r"warning: --hang: the pattern takes more than 0\.1 s for lines such as 'aaaa")
    os.kill(a.worker(1).pid, signal.SIGUSR2)
    text = a.ends(0)
    assert text.count("warning: --hang") == 1


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("step=(", "does not compile"),
        (".*", "not every line matches"),
        ("file:", "must name a file"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused_at_the_start(
    machine: Machine, rule: str, why: str
) -> None:
    text = machine.agent("a", "--hang", rule, nnodes="1").ends(2)
    assert "--hang must" in text
    assert why in text


def test_a_step_that_goes_backwards_is_said_once(machine: Machine) -> None:
    code = program_with("print('step=9'); print('step=3'); print('step=2', flush=True)")
    program = machine.program(code, "back.py")
    a = machine.agent("a", "--hang", r"step=(\d+)", nnodes="1", program=program)
    worker = a.worker(1)
    a.line("warning: rank 0: step 3 after step 9 is no progress")
    os.kill(worker.pid, signal.SIGUSR2)
    assert a.ends(0).count("is no progress") == 1


def test_the_stacks_of_a_run_are_shown_on_demand(machine: Machine) -> None:
    program = machine.program(JOINED, "joined.py")
    a = machine.agent("a", nnodes="2", program=program)
    b = machine.agent("b", nnodes="2", program=program)
    where = ("--endpoint", machine.endpoint)

    def text() -> str:
        return machine.command("stacks", "test", *where).ends(0)

    a.line("round 1: 2 nodes")
    wait_until(lambda: " in load (joined.py:6)" in (shown := text()) and "in barrier" in shown)
    shown = text()
    assert "(by faulthandler)" in shown
    assert 'joined.py", line 6 in load' in shown
    one = machine.command("stacks", "test", "b", "--json", *where).ends(0)
    assert '"silent": []' in one
    machine.command("close", "test", "--yes", *where).ends(0)
    a.ends(6)
    b.ends(6)


GLOO = """
import time
import rallypoint
import torch
import torch.distributed as dist

def load():
    time.sleep(600)

with rallypoint.join() as run:
    world = run.next_world()
    dist.init_process_group("gloo")
    for step in range(100):
        if (step, world.rank) == (3, 1):
            load()
        dist.all_reduce(torch.ones(4))
        world.progress(step)
"""


@pytest.mark.torch
def test_one_rank_of_a_gloo_job_hangs(machine: Machine) -> None:
    program = machine.program(GLOO, "gloo.py")
    env = {"MASTER_PORT": "", "OMP_NUM_THREADS": "1"}
    agents = [
        machine.agent(name, "--hang-timeout", "4s", *QUICK, nnodes="2", program=program, env=env)
        for name in ("a", "b")
    ]
    text = end_by_hang(agents[0])
    agents[1].ends(1)
    guilty, other = ("a", "b") if "a: rank 1" in text else ("b", "a")
    assert f"{guilty}: rank 1 hangs (no worker has advanced for 4 s" in text
    assert f"{other} rank 0 in all_reduce (gloo.py:" in text
    assert f"{guilty} rank 1 in load (gloo.py:8)" in text
