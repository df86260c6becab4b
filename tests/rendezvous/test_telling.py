"""What a handler's node says, how often, and where its lines go."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from rallypoint import errors
from rallypoint.client.node import Round
from rallypoint.client.waiting import on_standby
from rallypoint.core.reasons import Waiting, run_over
from rallypoint.core.telling import AGAIN_S
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Outcome,
    RoundHead,
    RunSettings,
    Seat,
)
from rallypoint.rendezvous._telling import Teller
from tests.loops import node, run_virtual

SRC = Path(__file__).parents[2] / "src"
HEAD = RoundHead(1, 1, 2, 2, Address("host", 1), "digest")
ALONE = Waiting(ready=1, minimum=2, maximum=2, since_s=0.5)

TWO = RunSettings(min_nodes=2, max_nodes=2, max_restarts=None)


class Waiter:
    """A node that waits, for a reason that the test sets."""

    def __init__(self) -> None:
        self.is_connected = True
        self.hosts_run = False
        self.nodes_max = 2
        self.stays_out = ""
        self.left_s: float | None = None
        self.looking = "the coordinator at host:1 does not answer"
        self.reason: Waiting | None = ALONE

    async def waiting(self) -> Waiting | None:
        return self.reason


# -- how often -------------------------------------------------------------------------------------


def test_a_reason_is_logged_when_it_changes_and_else_rarely() -> None:
    said: list[tuple[float, str]] = []

    async def main() -> None:
        loop, node = asyncio.get_running_loop(), Waiter()
        began_s = loop.time()
        teller = Teller(lambda text: said.append((loop.time() - began_s, text)))
        async with teller.while_waiting(node):
            await asyncio.sleep(1)
            assert said == []  # most rounds are formed before a line is needed
            for tick in range(2 * int(AGAIN_S)):
                node.reason = msgspec.structs.replace(ALONE, since_s=tick, last_call_s=99.0 - tick)
                await asyncio.sleep(1)
            node.reason = msgspec.structs.replace(ALONE, ready=2)
            await asyncio.sleep(6)
            node.is_connected = False
            await asyncio.sleep(6)
            node.looking = "ledger unreachable for 3.0 s: no answer"
            await asyncio.sleep(6)
        count = len(said)
        await asyncio.sleep(100)
        assert len(said) == count  # it waits no more

    run_virtual(main())
    times = [time_s for time_s, _ in said]
    assert all(later - sooner >= 1 for sooner, later in itertools.pairwise(times))
    texts = [text for _, text in said]
    first = [text for text in texts if "1 of 2 nodes ready" in text]
    assert 2 <= len(first) <= 4
    assert "for more nodes (last call)" in first[0]
    assert [text.split("]")[1] for text in texts[len(first) :]] == [
        " waiting: 2 of 2 nodes ready",
        " waiting: the coordinator at host:1 does not answer; trying again",
        " waiting: ledger unreachable for 3.0 s: no answer; trying again",
    ]


def test_a_node_on_standby_logs_it() -> None:
    said: list[str] = []

    async def main() -> None:
        node = Waiter()
        node.reason = None
        async with Teller(said.append).while_waiting(node):
            await asyncio.sleep(20)

    run_virtual(main())
    assert said == [f"[] {on_standby(2).text}"]


def test_standby_is_logged_once_per_round() -> None:
    said: list[str] = []

    async def main() -> None:
        waiter, teller = Waiter(), Teller(said.append)
        waiter.reason = None
        listened = node("http://127.0.0.1:1", TWO)
        teller.listen(listened)
        async with teller.while_waiting(waiter):
            listened.on_standby()
            await asyncio.sleep(20)
        teller.round_began(Round(HEAD, Seat(0, 0, 1)))
        async with teller.while_waiting(waiter):
            listened.on_standby()
            await asyncio.sleep(20)

    run_virtual(main())
    assert [text.partition("] ")[2] for text in said] == [
        on_standby(2).text,
        "round 1: 2 nodes; this is node 0",
        on_standby(2).text,
    ]


# -- what ------------------------------------------------------------------------------------------


def test_the_end_of_a_round_and_of_the_run_is_logged_once() -> None:
    said: list[str] = []
    teller = Teller(said.append)
    lost = Change(ChangeKind.NODE_LOST, 1, ("b",), 1, "its connection closed", confirmed=False)
    teller.round_ended(lost)
    teller.round_ended(msgspec.structs.replace(lost, confirmed=True))
    close = CloseRecord(Outcome.FAILED, "\x1b[2Jbad batch", by="b")
    teller.round_ended(Change(ChangeKind.CLOSED, 2, detail="failed"))
    teller.run_ended(close)
    teller.gone(errors.RunClosedError(run_over("run", close)))
    assert said == [
        "[] round 1 has ended: b lost: its connection closed; looking for the cause",
        "[] error: run '' has ended: failed: \\x1b[2Jbad batch (by b)",
    ]


def test_a_node_that_leaves_logs_nothing_about_its_connection() -> None:
    said: list[str] = []
    teller = Teller(said.append)
    teller.leaves()
    teller.gone(errors.CoordinatorLostError("this node has left the run"))
    assert said == []


def test_a_run_closed_before_this_node_came_is_logged() -> None:
    said: list[str] = []
    close = CloseRecord(Outcome.STOPPED, "enough")
    Teller(said.append).gone(errors.RunClosedError(run_over("run", close)))
    assert said == ["[] error: run '' has ended: stopped: enough"]


# -- where -----------------------------------------------------------------------------------------

PROGRAM = """
import logging, sys
{before}
root = logging.getLogger()
was = (root.level, list(root.handlers))
from rallypoint.rendezvous._telling import Teller, show_on_stderr
show_on_stderr()
show_on_stderr()
{after}
Teller().run_ended({close})
logging.getLogger("rallypoint.client").warning("the connection is %s", "lost")
logging.getLogger("rallypoint.coordinator").info("not for users")
if not {after!r}:
    assert (root.level, list(root.handlers)) == was
"""
CLOSE = "__import__('rallypoint').CloseRecord(__import__('rallypoint').Outcome.STOPPED, 'enough')"


def _stderr(before: str = "", after: str = "") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before, after=after, close=CLOSE)],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


LINE = "[] error: run '' has ended: stopped: enough"


@pytest.mark.processes
def test_a_program_without_logging_shows_the_lines_on_stderr() -> None:
    assert _stderr() == [LINE, "[rallypoint] warning: the connection is lost"]


@pytest.mark.processes
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_program_with_logging_of_its_own_shows_each_line_once_and_its_own_way(when: str) -> None:
    configure = "logging.basicConfig(format='mine: %(message)s')"
    lines = _stderr(**{when: configure})
    assert lines == [f"mine: {LINE}", "mine: the connection is lost"]


@pytest.mark.processes
def test_a_level_set_by_the_program_stays() -> None:
    lines = _stderr(before="logging.getLogger('rallypoint').setLevel(logging.WARNING)")
    assert lines == ["[rallypoint] warning: the connection is lost"]


@pytest.mark.processes
def test_a_stderr_that_hangs_blocks_nothing() -> None:
    """A log collector that hangs must not stop a node's heartbeats."""
    program = """
import os, sys, threading, time
from rallypoint.rendezvous import _telling
_telling.FLUSH_S = 0.1
read, write = os.pipe()
os.dup2(write, 2)
_telling.show_on_stderr()
teller = _telling.Teller()
for number in range(3 * _telling.LINES_MAX):
    teller._tell("x" * 1000)
print("went on", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "went on\n"


@pytest.mark.processes
def test_a_forked_child_shows_its_own_lines() -> None:
    program = """
import os
from rallypoint.rendezvous import _telling
_telling.show_on_stderr()
_telling.Teller()._tell("parent")
import logging
logging.getLogger("rallypoint").handlers[0].flush()
if os.fork() == 0:
    _telling.Teller()._tell("child")
    logging.shutdown()
    os._exit(0)
os.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.splitlines() == ["[] parent", "[] child"]
