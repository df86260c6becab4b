"""Simulated agents with --keep-workers: workers that leave their round in time, late, or never."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import pytest

from rallypoint.launch.keeping import Keeping
from rallypoint.simulation.faults import ALL_FAULTS
from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import OF_BARE_NODES, Plan, PlannedFault
from rallypoint.simulation.situation_faults import SITUATION_FAULTS
from rallypoint.simulation.workers import SimulatedWorker
from tests.kinds import seeds

OF_AGENTS = [
    kind for kind in ALL_FAULTS if kind not in OF_BARE_NODES and kind not in SITUATION_FAULTS
]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


def a_plan(seed: int) -> Plan:
    draw = random.Random(f"{seed}/keeping")
    faults = tuple(
        PlannedFault(2.0 + 2.0 * at, draw.choice(OF_AGENTS), draw.getrandbits(32))
        for at in range(draw.randrange(2, 8))
    )
    return Plan(
        nodes=draw.choice((2, 3, 4)),
        min_nodes=draw.choice((1, 2)),
        program="agent",
        ends=draw.random() < 0.6,
        keeps=True,
        preloads=draw.random() < 0.3,
        max_restarts=draw.choice((3, 9, None)),
        faults=faults,
    )


@pytest.mark.parametrize("seed", seeds(5, verify=20, long=400))
def test_agents_that_keep_workers_bear_faults(seed: int) -> None:
    job = Job(seed, plan=a_plan(seed)).run()
    assert job.problems == []


def played(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], int]:
    """The problems of a few jobs whose workers fail, and how many workers were kept in them."""
    kept = [0]
    original = SimulatedWorker.go_on

    def go_on(self: SimulatedWorker, variables: Mapping[str, str]) -> None:
        kept[0] += 1
        original(self, variables)

    monkeypatch.setattr(SimulatedWorker, "go_on", go_on)
    faults = tuple(PlannedFault(2.0 + 3.0 * at, "worker fails", at) for at in range(4))
    plan = Plan(nodes=3, min_nodes=2, program="agent", keeps=True, max_restarts=None, faults=faults)
    jobs = [Job(seed, plan=plan).run() for seed in range(4)]
    return [problem for job in jobs for problem in job.problems], kept[0]


def test_workers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    problems, kept = played(monkeypatch)
    assert problems == []
    assert kept > 0


def test_a_worker_that_has_not_left_its_round_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """R13: the bug is found."""
    monkeypatch.setattr(Keeping, "kept", lambda self, running: running)
    problems, _ = played(monkeypatch)
    assert any(
        "R13" in problem and "begins a round beside a worker" in problem for problem in problems
    )


def test_an_agent_that_waits_for_ever_for_its_workers_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Keeping.begin_wait

    def begin_wait(self: Keeping, running: tuple[int, ...], now_s: float) -> tuple[int, ...]:
        return original(self, running, now_s + 10_000.0)

    monkeypatch.setattr(Keeping, "begin_wait", begin_wait)
    problems, _ = played(monkeypatch)
    assert any("does not stop a worker" in problem for problem in problems)
