"""One process over several worlds with torch: a peer that is killed or frozen costs no restart."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path

import pytest

from tests.examples.programs import Program, Programs

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
]

PROGRAM = str(Path(__file__).with_name("torch_program.py"))


def started(run: Programs) -> tuple[Program, list[Program]]:
    """The coordinator, and three nodes that train together."""
    serve = run.cli("serve", "--port", str(run.port))
    run.wait_for_coordinator()
    nodes = [run.python(PROGRAM, f"http://{run.endpoint}", f"n{each}") for each in range(3)]
    for each in nodes:
        each.wait_for(r"rank \d of 3 trains")
    return serve, nodes


@pytest.mark.verify
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "killed"])
def test_survivors_regroup_in_their_processes(run: Programs, how: signal.Signals) -> None:
    serve, (victim, *survivors) = started(run)
    victim.process.send_signal(how)
    # gloo would wait for the frozen one for an hour, and its timeout is as long.
    for each in survivors:
        each.wait_for("ended: node_lost")
        each.wait_for(r"rank \d of 2 trains")
        each.wait_for("round 2 ended: (trained|closed)")  # the other one may close the run first
        assert each.end() == 0
    victim.kill()
    serve.process.terminate()
    serve.end()


def test_a_group_is_for_one_world_at_a_time(run: Programs) -> None:
    node = run.python(PROGRAM, "alone")
    assert node.end() == 0
    assert [line for line in node.lines if "UsageError" in line] == [
        "UsageError: this process has a process group already; end its block, or call "
        "torch.distributed.destroy_process_group(), before the next one",
        "UsageError: process_group needs a World of rallypoint.join, not None",
    ]
    # Two groups of one world, and the program's own keys, do not meet in the world's store.
    assert "sums 1.0 1.0, keys mine" in node.text
