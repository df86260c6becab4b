"""Each kind of fault has an effect in some of the seeds that draw it, and is not only planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from rallypoint.simulation import machine
from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import Plan

SEEDS = 150
"""In one of the first so many seeds that have the kind, it has its effect."""
DRAWN = 3_000
"""Of so many seeds."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


def plays_until(has_effect: Callable[[Job], bool], is_of_kind: Callable[[Plan], bool]) -> bool:
    """Play seeds whose plan has something, until it has its effect. No rule may be broken."""
    plays = 0
    for seed in range(DRAWN):
        job = Job(seed)
        if not is_of_kind(job.plan):
            continue
        assert job.run().problems == []
        plays += 1
        if has_effect(job):
            return True
        if plays == SEEDS:
            return False
    raise AssertionError(f"only {plays} of {DRAWN} seeds have it")


def has(kind: str) -> Callable[[Plan], bool]:
    """Whether a plan has faults of this kind."""
    return lambda plan: any(fault.kind == kind for fault in plan.faults)


@pytest.mark.parametrize("status", [404, 429, 502])
def test_nodes_meet_a_proxy_that_has_no_coordinator(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, met = machine._answered_by_a_proxy, set()

    def noted(address: object, status: int) -> Exception:
        met.add(status)
        return answered(address, status)  # type: ignore[arg-type]

    monkeypatch.setattr(machine, "_answered_by_a_proxy", noted)
    assert plays_until(lambda job: status in met, has("proxy"))


def test_a_proxy_ends_connections_that_are_idle() -> None:
    assert plays_until(
        lambda job: job.scene.network.ended_idle > 3, lambda plan: plan.proxy_idle_s > 0
    )


def alike(job: Job) -> int:
    """How many nodes that took part in rounds had made one and the same start of a name."""
    starts: Counter[str] = Counter()
    for each in job.scene.nodes:
        own = each.process.loop.runtime
        made = f"{own.host_name}-{own.pid}-"
        if each.tokens and each.node is not None and each.node.info.name.startswith(made):
            starts[made] += 1
    return max(starts.values(), default=0)


def test_nodes_of_one_host_name_and_one_pid_make_names() -> None:
    assert plays_until(lambda job: alike(job) > 1, lambda plan: plan.is_container)


def test_the_next_process_of_a_host_has_the_pid_of_the_last() -> None:
    def is_so(plan: Plan) -> bool:
        return plan.has_unnamed and plan.same_pids and not plan.is_container

    assert plays_until(lambda job: alike(job) > 1, is_so)


def test_names_that_nodes_make_are_the_same_in_each_play() -> None:
    seed = next(seed for seed in range(DRAWN) if Job(seed).plan.has_unnamed)
    first, second = (
        [each.node.info.name for each in Job(seed).run().scene.nodes if each.node is not None]
        for _ in range(2)
    )
    assert first == second
