"""Whole jobs of the shipped code under faults: seeds that hold, and bugs that are found."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from rallypoint.core.store.store import RoundStore
from rallypoint.simulation import store_oracles
from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import Plan, PlannedFault
from rallypoint.simulation.scene import Oracle

SEEDS = 12
SEEDS_UNTIL_ALL = 60
"""In the first of so many seeds everything happens that an oracle can look at: now in nine."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


def test_a_job_without_faults_ends() -> None:
    job = Job(1, plan=Plan(nodes=3, min_nodes=3, ledger_members=3, ends=True)).run()
    assert job.problems == []
    assert {each.tokens[-1] for each in job.scene.nodes} == {(1, 1)}


@pytest.mark.parametrize("orphan_s", [1.0, 3.0])
@pytest.mark.parametrize("lease_ttl_s", [5.0, 10.0])
def test_r13_a_coordinator_counts_until_its_lease_has_expired(
    orphan_s: float, lease_ttl_s: float
) -> None:
    nothing = PlannedFault(20.0, "cut", 1, moment="SUSPENDED")
    plan = Plan(2, 2, (nothing,), orphan_s=orphan_s, lease_ttl_s=lease_ttl_s)
    job = Job(1, plan=plan).run()
    assert job.problems == []
    assert [each.tokens for each in job.scene.nodes] == [[(1, 1)]] * 2


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_job_under_faults_keeps_the_rules(seed: int) -> None:
    job = Job(seed).run()
    assert job.problems == []
    assert job.events


def story(seed: int) -> str:
    """Everything that happened in a world, as text."""
    job = Job(seed).run()
    return repr((job.world.steps, job.events, job.problems))


def test_one_seed_gives_one_story() -> None:
    assert story(3) == story(3)
    assert story(3) != story(4)


ELSEWHERE = """
import os, socket
socket.gethostname = lambda: {host!r}
os.getpid = lambda: {pid}
from tests.simulation.test_job import story
for seed in range({seeds}):
    print(seed, story(seed))
"""
SEEDS_ELSEWHERE = 30
"""Seed 22 depended on the name of the machine's host: it is in a record, whose size is limited."""


@pytest.mark.processes
def test_one_seed_gives_one_history_on_every_machine() -> None:
    """With other hash seeds, host names, process ids, homes and working folders."""
    printed = []
    for hash_seed, host, pid, folder in (("1", "a", 7, "/"), ("2", "b" * 60, 4_000_000, "/tmp")):
        code = ELSEWHERE.format(host=host, pid=pid, seeds=SEEDS_ELSEWHERE)
        finished = subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "HOME": folder,
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            cwd=folder,
            capture_output=True,
            check=True,
        )
        printed.append(finished.stdout.splitlines())
    assert len(printed[0]) == SEEDS_ELSEWHERE
    assert [a[:9] for a, b in zip(*printed, strict=True) if a != b] == []


def problems_with(seeds: range) -> list[str]:
    """What the seeds find, until one finds something."""
    for seed in seeds:
        found = Job(seed).run().problems
        if found:
            return found
    return []


def test_a_call_that_is_applied_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that forgets the answers of calls applies one that is sent again (R11)."""
    apply = RoundStore.apply

    def forgetful(store: RoundStore, *arguments: object, **named: object) -> object:
        store._sessions.clear()
        return apply(store, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(RoundStore, "apply", forgetful)
    found = problems_with(range(200))
    assert any("R10/R11" in each or "KeyError" in each for each in found), found


def test_a_search_that_is_given_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the calls of that key would not have been checked, and nobody would know."""
    monkeypatch.setattr(store_oracles, "STATES_MAX", 3)
    told = [each.what for seed in range(6) for each in Job(seed).run().events]
    assert any(store_oracles.UNDECIDED in each for each in told)


def test_an_error_in_a_log_is_found_though_logging_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(store: RoundStore, *call: object) -> None:
        raise RuntimeError("a planted bug")

    monkeypatch.setattr(RoundStore, "apply", broken)
    logging.disable(logging.CRITICAL)
    try:
        job = Job(3, plan=Plan(nodes=2, min_nodes=2)).run()
        assert logging.root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)
    assert any("a planted bug" in problem for problem in job.problems), job.problems


@pytest.mark.parametrize("program", ["node", "agent"])
def test_nothing_of_a_world_is_kept_when_it_has_ended(program: str) -> None:
    job = Job(3, plan=Plan(nodes=3, min_nodes=2, program=program, ends=True)).run()
    kept = [weakref.ref(each) for each in (job.scene, job.world)]
    del job
    gc.collect()
    assert [each() for each in kept] == [None, None]


def test_oracles_are_told_of_everything_that_they_can_look_at() -> None:
    """A hook that nothing calls makes each check in it one that cannot fail."""
    hooks = {name for name, each in vars(Oracle).items() if callable(each) and name[0] != "_"}
    told: set[str] = set()
    seed = 0
    while seed < SEEDS_UNTIL_ALL and told < hooks:
        told.update(hook.__name__ for hook in Job(seed).run().scene._told)
        seed += 1
    assert told == hooks
