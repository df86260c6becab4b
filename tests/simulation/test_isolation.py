"""R7 where nodes reach the ledger, and not the coordinator's host: who can form a round does so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import ISOLATED, Plan


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


@pytest.mark.parametrize(
    ("seed", "plan"),
    [
        # The owner's own node is enough. It kept the run, though two other nodes waited.
        pytest.param(
            0, Plan(nodes=3, min_nodes=1, lease_ttl_s=10.0, lasting=ISOLATED), id="larger-group"
        ),
        # Two owners resigned in favour of each other, each before it had judged the other's node.
        pytest.param(
            0, Plan(nodes=2, min_nodes=1, lease_ttl_s=2.0, lasting=ISOLATED), id="two-nodes"
        ),
        # Both had resigned, and neither took the run for half a minute after the network was well.
        pytest.param(
            21, Plan(nodes=2, min_nodes=2, lease_ttl_s=2.0, lasting=ISOLATED), id="healed"
        ),
        # The owner heard one of the two others. That one reaches both, and could form a round.
        pytest.param(0, Plan(nodes=3, min_nodes=3, lease_ttl_s=2.0, lasting=ISOLATED), id="apart"),
    ],
)
def test_r7_whoever_can_form_a_round_goes_on_without_the_coordinators_host(
    seed: int, plan: Plan
) -> None:
    assert Job(seed, plan=plan).run().problems == []


def test_a_small_part_of_the_seeds_isolates_the_coordinators_host() -> None:
    plans = [Plan.draw(seed, ("kill", "cut")) for seed in range(600)]
    count = sum(plan.lasting == ISOLATED for plan in plans)
    assert 6 <= count <= 40
