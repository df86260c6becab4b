"""`rallypoint drain` and `evict`, with real agents, workers and commands."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

import pytest

from tests.agent.processes import Machine, alive

pytestmark = pytest.mark.processes

RUN = "job"
OPTIONS = ("--last-call", "60", "--run-id", RUN)


def rallypoint(machine: Machine, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rallypoint",
            *arguments,
            "--endpoint",
            f"http://{machine.endpoint}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def on_terminal(machine: Machine, typed: str, *arguments: str) -> tuple[int, str]:
    """The exit code, and what is shown, when this is typed."""
    ours, its = pty.openpty()
    where = ("--endpoint", f"http://{machine.endpoint}")
    command = [sys.executable, "-m", "rallypoint", *arguments, *where]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, close_fds=True) as process:
        os.close(its)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(ours, 1_024)
        os.write(ours, typed.encode())
        code = process.wait(60)
    os.close(ours)
    return code, shown.decode()


def test_a_drained_node_leaves_in_order_and_an_evicted_one_at_once(machine: Machine) -> None:
    """The first node hosts the coordinator, and is drained at last: it stays for the others."""
    a, b, c = (machine.agent(name, *OPTIONS, nnodes="1:3") for name in "abc")
    old = [agent.worker(1) for agent in (a, b, c)]
    said = rallypoint(machine, "drain", RUN, "c", "--reason", "new kernel")
    assert said == (0, f"node 'c' is asked to leave run '{RUN}'\n", "")
    c.line("leaving the run: drained by operator at 127.0.0.1: new kernel")
    c.ends(0)
    a.worker(2)
    second = b.worker(2)
    why = "round 1 has ended: c left: drained by operator at 127.0.0.1: new kernel"
    assert why in a.text
    assert not alive(old[2].pid)

    said = rallypoint(machine, "scale", RUN, "--nnodes", "1:2")
    assert said == (0, f"run '{RUN}' is scaled to 1:2 nodes: round 2 goes on\n", "")
    # A person is asked, and says no.
    code, shown = on_terminal(machine, "n\n", "evict", RUN, "b")
    assert f"Evict node 'b' from run '{RUN}'? [y/N]:" in shown
    assert code == 130
    code, out, _ = rallypoint(machine, "evict", RUN, "b", "--reason", "ECC errors", "--yes")
    assert (code, out) == (0, f"node 'b' is evicted from run '{RUN}'\n")
    assert "node 'b' was evicted by operator at 127.0.0.1: ECC errors" in b.ends(7)
    assert not alive(second.pid)
    third = a.worker(3)
    assert "round 2 has ended: b lost: evicted by operator" in a.text
    again = machine.agent("b", *OPTIONS, nnodes="1:3")
    assert "can lift that with `rallypoint admit`" in again.ends(7)
    code, out, _ = rallypoint(machine, "admit", RUN, "b", "--reason", "memory replaced")
    by = "it was evicted by operator at 127.0.0.1: ECC errors"
    assert (code, out) == (0, f"node 'b' may join run '{RUN}' again; {by}\n")

    code, _, err = rallypoint(machine, "drain", RUN, "bb")
    assert code == 2
    assert "nodes of this run: a" in err
    os.kill(third.pid, signal.SIGUSR2)
    a.ends(0)


@pytest.mark.parametrize(("order", "code"), [("drain", 0), ("evict", 7)])
def test_the_node_that_hosts_the_coordinator_stays_for_the_others(
    machine: Machine, order: str, code: int
) -> None:
    a, b = (machine.agent(name, *OPTIONS, nnodes="1:2") for name in "ab")
    old = [agent.worker(1) for agent in (a, b)]
    more = ("--yes",) if order == "evict" else ()
    assert rallypoint(machine, order, RUN, "a", "--reason", "hot", *more)[0] == 0
    second = b.worker(2)
    assert not alive(old[0].pid)
    assert a.popen.poll() is None
    os.kill(second.pid, signal.SIGUSR2)
    b.ends(0)
    assert "hot" in a.ends(code)
