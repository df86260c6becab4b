"""What a world costs, and whether plans draw every fault."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from rallypoint.simulation.faults import FAULTS
from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import Plan

SMALL = 20
CALLS_MAX = 160_000
"""The most calls of Python functions that a small world makes, on average. These make 120,000. An
idle core of 2020 then plays 20 worlds a second, and half the calls is twice the worlds. Time itself
is no measure here: beside other tests, the same core played 8 to 15, because they share its caches.
`python -m rallypoint.simulation --seeds 0:200` shows the rate."""


def small(seed: int) -> Plan:
    """A small world: 3 to 5 nodes, at least two of them candidates, and a few faults."""
    kinds = ("kill", "freeze", "cut", "block", "ledger", "fail")
    drawn = Plan.draw(seed, kinds)
    faults = tuple(each for each in drawn.faults if each.at_s < 15.0)[:8]
    return Plan(nodes=3 + seed % 3, min_nodes=2, faults=faults, ledger_members=3, last_call_s=1.0)


def calls_of(job: Job) -> int:
    """Play it, and count the calls of functions that are written in Python."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        result = job.run()
    finally:
        sys.setprofile(before)
    assert result.problems == []
    return calls


def test_small_worlds_make_few_calls() -> None:
    calls = sum(calls_of(Job(seed, plan=small(seed))) for seed in range(SMALL)) / SMALL
    assert 1_000 < calls < CALLS_MAX


def test_each_kind_of_fault_is_drawn_and_ends() -> None:
    drawn = {fault.kind for seed in range(300) for fault in Plan.draw(seed, tuple(FAULTS)).faults}
    assert drawn == set(FAULTS)
