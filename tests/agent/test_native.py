"""The native API in workers: `rallypoint.join()` without arguments."""

from __future__ import annotations

import os
import signal

import pytest

from tests.agent.processes import SAY, Machine, gone

pytestmark = pytest.mark.processes


def test_store_barrier_and_members_across_nodes_with_many_workers(machine: Machine) -> None:
    code = """
import rallypoint
with rallypoint.join() as run:
    for world in run.worlds():
        with world:
            world.store.add("sum", world.rank)
            world.barrier("all have added", 20)
            total = int(world.store.get("sum"))
            names = [m.name for m in world.members]
            print("told", run.run_id, run.node, world.size, world.nodes, total, names, flush=True)
            world.barrier("all have read", 20)
            print("closed", run.close("trained").reason, flush=True)
"""
    options, program = ("--nproc-per-node", "8"), machine.program(code)
    a = machine.agent("a", *options, nnodes="2", program=program)
    b = machine.agent("b", nnodes="2", program=program)
    for agent, count in ((a, 8), (b, 1)):
        for _ in range(count):
            told = agent.line(r"told (\w+) (\w+) (\d+) (\d+) (\d+) (.*)")
            assert told.groups()[:5] == ("test", agent.name, "9", "2", str(sum(range(9))))
            assert sorted(told[6]) == sorted("['a', 'b']")
    for agent in (a, b):
        assert "run 'test' has succeeded: trained" in agent.ends(0)
    assert a.text.count("closed trained") == 8


WAITS_FOR_CHANGE = """
import os, signal, sys, threading
import rallypoint
with rallypoint.join() as run:
    for world in run.worlds():
        changed = threading.Event()
        print("world", world.number, world.rank, world.size, os.getpid(), flush=True)
        # The program goes on as long as it is not stopped.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        world.on_change(lambda change: changed.set())
        changed.wait()
        print("change", world.change.kind.value, ",".join(world.change.nodes), flush=True)
print("no more worlds", run.closed, flush=True)
"""


def test_a_worker_gets_the_reason_of_its_worlds_end(machine: Machine) -> None:
    program = machine.program(WAITS_FOR_CHANGE)
    # The program ignores SIGTERM, so that it gets the change before it is killed.
    options = ("--regroup-stop-timeout", "3", "--expected-nodes", "2", "--last-call", "60")
    a, b = (machine.agent(name, *options, nnodes="1:2", program=program) for name in ("a", "b"))
    pids = [int(agent.line(r"world 1 \d 2 (\d+)")[1]) for agent in (a, b)]
    b.signal(signal.SIGKILL)
    assert a.line(r"change (\w+) (\w+)").groups() == ("node_lost", "b")
    a.line(r"world 2 0 1")
    gone(pids)
    a.signal(signal.SIGTERM)
    a.line("got SIGTERM")
    a.signal(signal.SIGTERM)
    a.ends(143)


def test_a_departing_nodes_worker_saves_and_ends_by_itself(machine: Machine) -> None:
    """It asks for no other world until it is killed."""
    code = """
import signal
import rallypoint
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with rallypoint.join() as run:
    for world in run.worlds():
        print("world", world.number, flush=True)
        while not world.change:
            signal.sigtimedwait((), 0.05)
        print("change", world.change, flush=True)
print("no more worlds", run.closed, flush=True)
"""
    options = ("--stop-timeout", "120")
    agent = machine.agent("a", *options, nnodes="1", program=machine.program(code))
    agent.line("world 1")
    agent.signal(signal.SIGTERM)
    text = agent.ends(143)
    assert "change a left: its agent got SIGTERM" in text
    assert "no more worlds None" in text


def test_asking_for_the_next_world_regroups(machine: Machine) -> None:
    code = """
import rallypoint
with rallypoint.join() as run:
    for world in run.worlds():
        print("world", world.number, world.rank, flush=True)
        world.barrier("met", 20)
        if world.number == 2:
            run.close("twice is enough")
        elif world.rank != 0:
            while not world.change:
                pass
"""
    program = machine.program(code)
    agents = [machine.agent(name, nnodes="2", program=program) for name in ("a", "b")]
    for agent in agents:
        text = agent.ends(0)
        assert "asked for a new round" in text
        assert "round 2: 2 nodes" in text


def test_a_worker_can_take_its_node_out_of_the_run(machine: Machine) -> None:
    code = """
import os, signal
import rallypoint
run = rallypoint.join()
world = run.next_world()
print("worker", world.number, world.rank, world.size, os.getpid(), flush=True)
if world.number == 1 and run.node == "b":
    run.leave("it has seen enough")
    signal.pause()
world.barrier("the others", 20) if world.size == 2 else signal.pause()
run.close("done")
"""
    program = machine.program(code)
    options = ("--last-call", "60")  # all are in the first round, however slowly they start
    agents = [
        machine.agent(name, *options, nnodes="2:3", program=program) for name in ("a", "b", "c")
    ]
    agents[1].ends(0)
    for agent in (agents[0], agents[2]):
        assert "round 1 has ended: b left: it has seen enough" in agent.ends(0)


def test_an_exception_in_a_run_block_is_a_failure(machine: Machine) -> None:
    code = """
import rallypoint
with rallypoint.join() as run:
    for world in run.worlds():
        with world:
            raise ValueError("bad batch in shard 7")
"""
    agent = machine.agent("a", nnodes="1", program=machine.program(code))
    text = agent.ends(1)
    assert "rank 0 exited with code 1 (ValueError: bad batch in shard 7)" in text


def test_a_fork_neither_holds_the_connection_nor_can_use_the_run(machine: Machine) -> None:
    code = """
import os, signal, sys
import rallypoint
run = rallypoint.join()
world = run.next_world()
world.store.set("a", "b")
def sockets():
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.lexists(link) and "socket" in os.readlink(link)]
before = len(sockets())
child = os.fork()
if not child:
    try:
        world.store.get("a")
    except rallypoint.UsageError as error:
        print("child", before - len(sockets()), type(error).__name__, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", world.store.get("a"), flush=True)
"""
    agent = machine.agent("a", nnodes="1", program=machine.program(code))
    text = agent.ends(0)
    assert "child 1 ForkedProcessError" in text
    assert "parent b'b'" in text


def test_a_worker_that_waits_for_a_key_dies_with_its_agent(machine: Machine) -> None:
    code = """
import os, signal, sys, threading
import rallypoint
run = rallypoint.join()
world = run.next_world()
print("worker", 1, world.rank, world.size, os.getpid(), flush=True)
world.store.get("never")
"""
    agent = machine.agent("a", nnodes="1", program=machine.program(code))
    worker = agent.worker()
    agent.signal(signal.SIGKILL)
    agent.code()
    gone([worker.pid])


def test_remains_of_a_worker_are_no_part_of_the_next_round(machine: Machine) -> None:
    """A process in its own session survives its worker, and has the worker's secret."""
    code = f"""{SAY}
import os, signal, time
import rallypoint
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
if os.environ["RALLYPOINT_ROUND"] == "1":
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        run = rallypoint.join()
        world = run.next_world()
        say("orphan", os.getpid())
        changed = False
        while True:
            try:
                world.store.set("who", "the orphan")
            except rallypoint.RallypointError as error:
                if not changed:
                    say("orphan was told", type(error).__name__)
                changed = True
            time.sleep(0.01)
    say("first", os.getpid())
    signal.pause()
run = rallypoint.join()
world = run.next_world()
world.store.set("who", "the worker")
say("worker", world.number, world.rank, world.size, os.getpid())
for _ in range(30):
    assert world.store.get("who") == b"the worker", world.store.get("who")
    time.sleep(0.01)
signal.sigwait([signal.SIGUSR2])
"""
    options = ("--max-restarts", "1")
    agent = machine.agent("a", *options, nnodes="1", program=machine.program(code))
    agent.line("first")
    agent.rewind()
    orphan = int(agent.line(r"orphan (\d+)")[1])
    agent.rewind()
    try:
        os.kill(int(agent.line(r"first (\d+)")[1]), signal.SIGKILL)
        agent.line("orphan was told")
        agent.rewind()
        os.kill(agent.worker(2).pid, signal.SIGUSR2)
        agent.ends(0)
    finally:
        os.kill(orphan, signal.SIGKILL)
