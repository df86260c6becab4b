"""R13: a node whose name a newer start has stops its workers, however it has lost its name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import Plan, PlannedFault


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


# The node is frozen, and another member's worker fails: the node is lost, and its name is free.
LOST_FIRST = Plan(
    nodes=3,
    min_nodes=3,
    program="agent",
    ledger_members=3,
    replicas=1,
    lease_ttl_s=10.0,
    last_call_s=1.0,
    suspect_after_s=5.0,
    lost_after_s=10.0,
    stop_s=0.0,
    workers_max=3,
    same_names=True,
    calls_per_s=0.3,
    faults=(
        PlannedFault(14.708, "twin", 3144165083),
        PlannedFault(19.089, "long freeze", 959228652),
        PlannedFault(22.521, "long freeze", 2393078319),
        PlannedFault(28.231, "fail", 2955178581),
        PlannedFault(28.336, "twin of frozen", 533637185),
        PlannedFault(32.32, "cut", 920171755),
    ),
)


def test_a_node_that_was_lost_before_its_name_was_taken_stops_its_workers() -> None:
    job = Job(300, plan=LOST_FIRST).run()
    ended = [each.what for each in job.events if "has taken its place" in each.what]
    assert job.problems == []
    assert ended, "no node was superseded"
