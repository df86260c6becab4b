"""R7: a node whose workers finished while it was lost is done, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import Plan, PlannedFault


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


TWO = Plan(nodes=2, min_nodes=2, lease_ttl_s=2.0, suspect_after_s=2.0, lost_after_s=10.0, ends=True)
FROZEN = msgspec.structs.replace(
    TWO,
    replicas=1,
    faults=(
        PlannedFault(6.826, "freeze", 1216572562),
        PlannedFault(7.787, "finish", 315220438),
        PlannedFault(8.408, "cut", 295548373),
        PlannedFault(29.859, "cut", 1140238658),
    ),
)
CUT_OFF = msgspec.structs.replace(
    TWO,
    lease_ttl_s=5.0,
    faults=(
        PlannedFault(7.635, "isolate", 3610836943),
        PlannedFault(8.815, "finish", 3328059025),
        PlannedFault(9.838, "cut", 3739625777),
        PlannedFault(43.919, "cut", 761660383),
    ),
)


@pytest.mark.parametrize(
    ("seed", "plan"), [(5799, FROZEN), (2564, CUT_OFF)], ids=["frozen", "cut-off"]
)
def test_a_node_that_finished_while_it_was_lost_ends_with_its_run(seed: int, plan: Plan) -> None:
    assert Job(seed, plan=plan).run().problems == []


def test_a_small_part_of_the_seeds_lets_nodes_finish_while_they_are_lost() -> None:
    kinds = [[each.kind for each in Plan.draw(seed, ("stutter",)).faults] for seed in range(600)]
    assert 4 <= sum("finish" in each for each in kinds) <= 30
