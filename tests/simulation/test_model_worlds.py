"""Worlds of the model checker in which all rules hold: the small ones whole, others by breadth."""

from __future__ import annotations

import pytest

from rallypoint.simulation.explore import explore
from rallypoint.simulation.model import WORLDS, World
from rallypoint.simulation.model.story import as_text
from rallypoint.simulation.model.worlds import LARGE, MEDIUM, SMALL
from tests.kinds import LONG, only_long

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

STATES = 40_000 if LONG else 10_000
"""Of each world that is not explored whole."""
FEWEST = {"crash": 80_000, "close": 55_000, "restart": 130_000, "depart": 75_000, "limit": 55_000}
"""A world that lost many of its states has lost some of its moves."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=only_long if name == "restart" else ()) for name in SMALL]
)
def test_small_worlds_hold_as_a_whole(name: str) -> None:
    report = explore(World(WORLDS[name]))
    print(f"{name}: {report}")
    assert not report.violation, f"{report.violation}\n{as_text(report.path)}"
    assert report.is_whole
    assert report.is_progress_whole
    assert report.states > FEWEST.get(name, 200)


@pytest.mark.parametrize("name", [*MEDIUM, *LARGE])
def test_large_worlds_hold_as_far_as_they_are_explored(name: str) -> None:
    report = explore(World(WORLDS[name]), states_max=STATES)
    print(f"{name}: {report}")
    assert not report.violation, f"{report.violation}\n{as_text(report.path)}"
    assert report.states >= STATES
    assert report.samples > 0
