"""Workers of `rallypoint run` whose node's token was revoked are told why, and are stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.processes import Machine, Process
from tests.cli.conftest import Cli, Served, cli, plain_environment, serve

__all__ = ["cli", "plain_environment", "serve"]

pytestmark = pytest.mark.processes

WATCHES = """
import signal
import sys
import threading
import time
import rallypoint

def line(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

told = threading.Event()

def end(*_):
    told.wait(20)  # the agent has told it before the signal
    line("world.change:", world.change)
    sys.exit(0)

with rallypoint.join() as run:
    world = run.next_world()
    world.on_change(lambda change: told.set())
    signal.signal(signal.SIGTERM, end)
    line("in a round of", world.size)
    time.sleep(60)
"""


def test_the_workers_of_a_node_are_told_that_its_token_was_revoked(
    machine: Machine, cli: Cli, serve: Callable[..., Served], tmp_path: Path
) -> None:
    state, leaky = tmp_path / "state", tmp_path / "leaky"
    assert cli("token", "new", "--state", str(state)).code == 0
    listed = ("--role", "node", "--listed", "leaky")
    assert cli("token", "new", str(leaky), "--state", str(state), *listed).code == 0
    endpoint = serve("--state", str(state)).endpoint
    program = machine.program(WATCHES, "watches.py")

    def agent(name: str, token: Path) -> Process:
        options = ("--token-file", str(token), "--max-restarts", "3")
        return machine.agent(name, *options, nnodes="1:2", endpoint=endpoint, program=program)

    stays = agent("stays", state / "token")
    goes = agent("goes", leaky)
    for each in (stays, goes):
        each.line("in a round of 2")  # a busy machine may have begun with one
    cli("token", "revoke", "leaky", "--state", str(state))
    goes.line(r"world\.change: goes lost: this node's token leaky was revoked by")
    # It stops them, and ends with the same words.
    goes.ends(2)
    assert "error: this node's token leaky was revoked by" in goes.text
    assert "its agent has ended" not in goes.text
    stays.line(r"world\.change: goes lost: its token leaky was revoked by")
    stays.line("in a round of 1")
