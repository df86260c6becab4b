"""Workers that stay: `rallypoint run --keep-workers`, with real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.agent.processes import Machine, Process, gone
from tests.waiting import wait_until

pytestmark = pytest.mark.processes

# Goes on over the ends of its worlds. USR1 raises ValueError, USR2 an error that could be a peer's.
KEPT = """
import os, signal, sys, time
import rallypoint

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

def fail(*_):
    raise ValueError("bad batch in shard 7")

def break_down(*_):
    raise RuntimeError("the device has gone")

signal.signal(signal.SIGUSR1, fail)
signal.signal(signal.SIGUSR2, break_down)

def check(world):
    env, here = os.environ, {
        "RANK": world.rank, "WORLD_SIZE": world.size, "LOCAL_RANK": world.local_rank,
        "GROUP_RANK": world.node_rank, "GROUP_WORLD_SIZE": world.nodes,
        "MASTER_PORT": world.bootstrap.port, "RALLYPOINT_ROUND": world.number,
        "TORCHELASTIC_RESTART_COUNT": world.restart_count,
    }
    assert {name: env[name] for name in here} == {name: str(n) for name, n in here.items()}, env
    assert f"error-{world.number}-" in env["TORCHELASTIC_ERROR_FILE"]

with rallypoint.join() as run:
    for world in run.worlds():
        check(world)
        with world:
            world.barrier("all are here", 60)
            say("world", world.number, world.rank, world.size, os.getpid())
            step = 0
            while not world.change:
                world.progress(step)
                world.barrier(f"step {step}", 60)
                time.sleep(0.02)
                step += 1
        say("left", world.number, world.change.kind.value)
say("no more worlds")
"""


def worlds(agent: Process, number: int, count: int) -> dict[int, int]:
    """The pid of each worker of a world on this node, by its rank."""
    found: dict[int, int] = {}
    while len(found) < count:
        match = agent.line(rf"world {number} (\d+) \d+ (\d+)$")
        found[int(match[1])] = int(match[2])
    return found


def written(path: Path, line: str) -> None:
    """Wait until this line is in the file."""
    wait_until(lambda: path.is_file() and line in path.read_text())


def test_a_lost_peer_restarts_no_process_of_the_others(machine: Machine) -> None:
    options = (
        *("--keep-workers", "--log-dir", str(machine.directory / "logs")),
        *("--expected-nodes", "3", "--last-call", "60"),
    )
    program = machine.program(KEPT)
    counts = {"a": 2, "b": 1, "c": 1}
    agents = {
        name: machine.agent(
            *(name, *options, "--nproc-per-node", str(count)), nnodes="2:3", program=program
        )
        for name, count in counts.items()
    }
    first = {name: worlds(agents[name], 1, count) for name, count in counts.items()}
    # A loss of the lower ranks gives the other node another rank. The first agent is the host.
    lost, kept = sorted(("b", "c"), key=lambda name: min(first[name]))
    os.kill(first[lost].popitem()[1], signal.SIGKILL)
    agents[lost].signal(signal.SIGKILL)
    for name in ("a", kept):
        agent = agents[name]
        second = worlds(agent, 2, counts[name])
        assert sorted(second.values()) == sorted(first[name].values())
        assert name == "a" or second.keys() != first[name].keys()
        for rank, pid in second.items():
            line = f"world 2 {rank} 3 {pid}"
            written(machine.directory / "logs" / "test" / "round-2" / f"rank-{rank}.out", line)
            assert f"[{name}:{rank}] {line}" in agent.text
    # A newcomer meets those that stay.
    d = machine.agent("d", *options, nnodes="2:3", program=program)
    worlds(d, 3, 1)
    for name in ("a", kept):
        assert sorted(worlds(agents[name], 3, counts[name]).values()) == sorted(
            first[name].values()
        )
    # The host ends last, for the others.
    for agent in (d, agents[kept], agents["a"]):
        agent.signal(signal.SIGTERM)
        agent.ends(143)


def test_a_worker_that_raises_is_started_again_and_no_other_one(machine: Machine) -> None:
    options = ("--keep-workers", "--nproc-per-node", "3", "--max-restarts", "2")
    a = machine.agent("a", *options, nnodes="1", program=machine.program(KEPT))
    first = worlds(a, 1, 3)
    os.kill(first[1], signal.SIGUSR1)
    second = worlds(a, 2, 3)
    assert {rank for rank, pid in second.items() if pid == first[rank]} == {0, 2}
    assert "rank 1 exited with code 1 (ValueError: bad batch in shard 7)" in a.text
    # An error that another one's loss could have caused is told before the process ends.
    os.kill(second[2], signal.SIGUSR2)
    third = worlds(a, 3, 3)
    assert {rank for rank, pid in third.items() if pid == second[rank]} == {0, 1}
    assert "rank 2 failed (RuntimeError: the device has gone)" in a.text
    os.kill(third[0], signal.SIGUSR2)
    text = a.ends(1)
    assert "rank 0 failed (RuntimeError: the device has gone)" in text
    assert 'raise RuntimeError("the device has gone")' in text.rpartition("has failed")[2]


NEVER_ASKS = KEPT.replace(
    "step = 0\n", "step = 0\n            while world.rank == 1: time.sleep(0.01)\n"
)


def test_a_worker_that_never_asks_is_stopped_and_named(machine: Machine) -> None:
    options = ("--keep-workers", "--set", "unwind=0.5s", "--nproc-per-node", "3")
    a = machine.agent(
        *("a", *options, "--max-restarts", "1"), nnodes="1", program=machine.program(NEVER_ASKS)
    )
    first = worlds(a, 1, 3)
    os.kill(first[0], signal.SIGUSR1)
    a.line("rank 1 has not asked for the next world within 0.5 s of the end of round 1")
    second = worlds(a, 2, 3)
    assert {rank for rank, pid in second.items() if pid == first[rank]} == {2}
    gone([first[0], first[1]])


@pytest.mark.verify
def test_a_frozen_worker_is_stopped_and_started_again(machine: Machine) -> None:
    options = ("--keep-workers", "--set", "unwind=0.5s", "--regroup-stop-timeout", "1")
    program = machine.program(KEPT)
    a = machine.agent("a", *options, "--nproc-per-node", "2", nnodes="1:2", program=program)
    b = machine.agent("b", *options, nnodes="1:2", program=program)
    first = worlds(a, 1, 2)
    worlds(b, 1, 1)
    frozen = max(first)
    machine.freeze(first[frozen])
    b.signal(signal.SIGKILL)
    a.line("has not asked for the next world within 0.5 s")
    second = worlds(a, 2, 2)
    assert first[min(first)] in second.values()
    assert first[frozen] not in second.values()
    gone([first[frozen]])


def test_a_program_that_does_not_join_works_as_before(machine: Machine) -> None:
    options = ("--keep-workers", "--nproc-per-node", "2", "--max-restarts", "2")
    a = machine.agent("a", *options, nnodes="1")
    for number in (1, 2):
        os.kill(a.workers(2, number)[0].pid, signal.SIGUSR1)
    third = a.workers(2, 3)
    for worker in third:
        os.kill(worker.pid, signal.SIGUSR2)
    text = a.ends(0)
    assert text.count("has not called rallypoint.join, so each round starts new processes") == 1


@pytest.mark.verify
def test_one_that_waits_for_a_world_gets_the_signal_of_its_agent(machine: Machine) -> None:
    """Between two rounds, it ends by itself within the stop time."""
    ignores = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    program = machine.program(KEPT.replace("def check(", f"{ignores}\n\ndef check("))
    a, b = (
        machine.agent(each, "--keep-workers", nnodes="2", program=program) for each in ("a", "b")
    )
    pid = worlds(a, 1, 1).popitem()[1]
    worlds(b, 1, 1)
    b.signal(signal.SIGKILL)
    a.line("lost since the last round")
    assert Path(f"/proc/{pid}").exists()
    a.signal(signal.SIGTERM)
    assert "no more worlds" in a.ends(143)
    gone([pid])


YIELDS = """
import os, sys, time
import rallypoint

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

step = None
with rallypoint.join() as run:
    for world in run.worlds():
        with world:
            step = world.newest(step, 60).step or 0
            say("world", world.number, world.rank, world.size, os.getpid())
            while not world.change:
                if world.should_yield(step):
                    say("yields", step)
                    world.barrier("saved", 60)
                    break
                world.barrier(f"step {step}", 60)
                if step == 3:
                    say("all take part")  # They have said so before the barrier.
                time.sleep(0.02)
                step += 1
"""


def test_a_departure_that_is_agreed_restarts_no_process(machine: Machine) -> None:
    options = ("--keep-workers", "--expected-nodes", "2", "--last-call", "60")
    program = machine.program(YIELDS)
    a = machine.agent("a", *options, "--nproc-per-node", "2", nnodes="1:2", program=program)
    b = machine.agent("b", *options, nnodes="1:2", program=program)
    first = worlds(a, 1, 2)
    b.line("all take part")
    b.signal(signal.SIGTERM)
    steps = {a.line(r"yields (\d+)")[1] for _ in range(2)}
    b.ends(143)
    assert len(steps) == 1
    assert sorted(worlds(a, 2, 2).values()) == sorted(first.values())
    a.signal(signal.SIGTERM)
    a.ends(143)


@pytest.mark.verify
def test_the_place_of_a_worker_that_ended_starts_warm(machine: Machine) -> None:
    program = KEPT.replace("def check(", 'say("warm", "colorsys" in sys.modules)\n\ndef check(')
    options = ("--keep-workers", "--preload=colorsys", "--nproc-per-node", "2")
    a = machine.agent(
        *("a", *options, "--max-restarts", "1"), nnodes="1", program=machine.program(program)
    )
    first = worlds(a, 1, 2)
    os.kill(first[1], signal.SIGUSR1)
    second = worlds(a, 2, 2)
    assert second[0] == first[0]
    assert second[1] != first[1]
    assert a.text.count("warm True") == 3
    a.signal(signal.SIGTERM)
    a.ends(143)


FINISHES = """
import os, rallypoint
with rallypoint.join() as run:
    for world in run.worlds():
        with world:
            world.barrier("all are here", 60)
            if world.number == 1 and world.rank == 1:
                raise ValueError("once")
            world.barrier("all have finished", 60)
            break
print("finished", world.number, flush=True)
"""


@pytest.mark.verify
def test_all_that_finish_end_the_run(machine: Machine) -> None:
    options = ("--keep-workers", "--nproc-per-node", "2", "--max-restarts", "1")
    a = machine.agent("a", *options, nnodes="1", program=machine.program(FINISHES))
    text = a.ends(0)
    assert "run 'test' has succeeded" in text
    assert text.count("finished 2") == 2


CATCHES = """
import rallypoint
with rallypoint.join() as run:
    for world in run.worlds():
        try:
            with world:
                raise ValueError("bad batch in shard 7")
        except ValueError:
            pass
"""


def test_a_mistake_that_the_program_catches_costs_a_restart(machine: Machine) -> None:
    """Its process goes on, so no exit tells of it. Without a cost, it would go on for ever."""
    options = ("--keep-workers", "--max-restarts", "2")
    a = machine.agent("a", *options, nnodes="1", program=machine.program(CATCHES))
    text = a.ends(1)
    assert text.count("rank 0 failed (ValueError: bad batch in shard 7)") >= 3


OLD_WORLD = """
import os, sys, time
import rallypoint

def refused(use):
    try:
        use()
    except rallypoint.errors.RoundBrokenError as error:
        return error.change.round == 1
    return False

old = None
with rallypoint.join() as run:
    for world in run.worlds():
        if old is None:
            old = world
            continue
        uses = lambda: old.members, lambda: old.store.get("key"), lambda: old.newest(7)
        assert all(map(refused, uses)), [refused(use) for use in uses]
        assert [each.name for each in world.members] == ["a"]
        old.should_yield(7)
        sys.stdout.write(f"world {world.number} {world.rank} {world.size} {os.getpid()}\\n")
        sys.stdout.flush()
        while not world.change:
            time.sleep(0.02)
"""


def test_the_objects_of_an_earlier_world_say_nothing_of_the_next_one(machine: Machine) -> None:
    """A thread that still uses them does not make this node take part in an agreement."""
    program = machine.program(OLD_WORLD)
    a = machine.agent("a", "--keep-workers", nnodes="1", program=program)
    worlds(a, 2, 1)
    a.signal(signal.SIGTERM)
    assert "leaving the run; the workers have 25 s to stop" in a.ends(143)


TWO_CALLS = """
import asyncio
from rallypoint import aio

async def main():
    async with await aio.join() as run:
        await run.next_world()
        found = await asyncio.gather(run.next_world(), run.next_world())
        assert [world.number for world in found] == [2, 2], found
        assert [world.change for world in found] == [None, None]
        assert [await world.store.add("calls", 1) for world in found] == [1, 2]

asyncio.run(main())
"""


def test_two_that_ask_at_once_get_the_same_world(machine: Machine) -> None:
    program = machine.program(TWO_CALLS)
    a = machine.agent("a", "--keep-workers", nnodes="1", program=program)
    assert "run 'test' has succeeded" in a.ends(0)
