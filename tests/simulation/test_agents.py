"""Simulated agents: the shipped agent, with workers that fail, hang, finish or are left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rallypoint.launch.phases import Phase
from rallypoint.simulation.agents import SimulatedSystem
from rallypoint.simulation.faults import ALL_FAULTS
from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import OF_BARE_NODES, Plan, PlannedFault
from rallypoint.simulation.situation_faults import SITUATION_FAULTS
from rallypoint.simulation.workers import GUARDED_S

SEEDS = 6
OF_AGENTS = [
    kind for kind in ALL_FAULTS if kind not in OF_BARE_NODES and kind not in SITUATION_FAULTS
]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


def a_plan(*faults: PlannedFault, **more: Any) -> Plan:
    given: dict[str, Any] = {"nodes": 3, "min_nodes": 2, "program": "agent", "ends": True}
    return Plan(**given | {"faults": faults} | more)


def ends_of(job: Job) -> list[str]:
    return sorted(each.end for each in job.scene.nodes if each.is_over)


def system_of(job: Job, index: int) -> SimulatedSystem:
    (system,) = (each.system for each in job.scene.nodes if each.index == index)
    assert isinstance(system, SimulatedSystem)
    return system


@pytest.mark.parametrize("seed", range(4))
def test_agents_whose_workers_start_warm_bear_faults(seed: int) -> None:
    faults = [
        PlannedFault(2.0 + 2.0 * at, kind, seed)
        for at, kind in enumerate(("worker fails", "signal", "worker fails", "freeze"))
    ]
    job = Job(seed, plan=a_plan(*faults, preloads=True, nodes=4, max_restarts=9)).run()
    assert job.problems == []
    said = "\n".join(str(each) for each in job.scene.events)
    assert "preload" in said


def test_agents_without_faults_end_with_success() -> None:
    job = Job(1, plan=a_plan()).run()
    assert job.problems == []
    assert ends_of(job) == ["exit code 0"] * 3


@pytest.mark.parametrize("kind", OF_AGENTS)
def test_agents_bear_each_fault(kind: str) -> None:
    job = Job(2, plan=a_plan(PlannedFault(4.0, kind, 7), PlannedFault(6.0, kind, 8))).run()
    assert job.problems == []


def test_a_run_whose_restarts_are_used_up_fails_on_all_nodes() -> None:
    faults = [PlannedFault(4.0 + 3.0 * at, "worker fails", 2 * at) for at in range(3)]
    job = Job(3, plan=a_plan(*faults, max_restarts=1)).run()
    assert job.problems == []
    assert [each.end for each in job.scene.nodes[:3]] == ["exit code 1"] * 3


def test_the_workers_of_a_dead_agent_end_soon_after_it() -> None:
    job = Job(4, plan=a_plan(ends=False))
    try:
        job.play()
        assert system_of(job, 0).living
        system_of(job, 0).process.kill()
        job.world.run_until(job.world.now_s + GUARDED_S)
        assert not system_of(job, 0).living
        job.world.run_until(job.world.now_s + 30.0)
        assert system_of(job, 1).living
    finally:
        job.world.close()


def test_a_stubborn_worker_is_killed_when_its_grace_is_over() -> None:
    job = Job(5, plan=a_plan(PlannedFault(3.0, "workers hang", 1), PlannedFault(4.0, "signal", 1)))
    assert job.run().problems == []
    assert any("exit code 1" in end and len(end) > len("exit code 1") for end in ends_of(job))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_agents_under_faults_keep_the_rules(seed: int) -> None:
    seeds = (each for each in range(1_000) if Job(each).plan.program == "agent")
    for _ in range(seed):
        next(seeds)
    job = Job(next(seeds)).run()
    assert job.problems == []
    over = [each for each in job.scene.nodes if each.is_over]
    assert all(each.system.machine.phase is Phase.ENDED for each in over if each.system)
