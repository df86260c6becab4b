"""An attack without a token takes place, and keeps no node out."""

from __future__ import annotations

import pytest

from rallypoint.bench import driver, stranger, strangers
from rallypoint.bench.figure import Target


@pytest.mark.parametrize(
    ("share", "value"), [(0.999, 999.0), (0.5, 500.0), (0.9991, 1_000.0), (1.0, 1_000.0)]
)
def test_a_percentile_is_one_of_the_values(share: float, value: float) -> None:
    assert strangers.percentile([float(each) for each in range(1_000, 0, -1)], share) == value


def test_a_percentile_of_one_value() -> None:
    assert strangers.percentile([7.0], 0.001) == strangers.percentile([7.0], 0.999) == 7.0


@pytest.mark.processes
@pytest.mark.verify
@pytest.mark.parametrize("place", ["served", "embedded"])
def test_a_stranger_keeps_no_node_out(place: str) -> None:
    plan = driver.Plan(driver.NOWHERE, seconds=2.0, place=place)
    figures = {each.name: each for each in strangers.measure(plan, 8)}
    assert figures[strangers.HEARTBEAT].target == Target(100.0)
    assert figures[strangers.MEMORY].target == Target(64.0)
    assert figures[strangers.MEMORY].reached
    assert figures[strangers.NOT_ATTACHED].reached
    did = figures["times that the stranger connected"]
    assert did.median >= len(stranger.WAYS) * strangers.CONNECTIONS
    assert all(f"{way}: " in did.about for way in stranger.WAYS)
