"""The second quarter of the seeds: see parts."""

from __future__ import annotations

import pytest

from tests.simulation.seeds.parts import PARTS, must_hold


@pytest.mark.parametrize("part", PARTS)
def test_no_seed_breaks_a_rule(part: int) -> None:
    must_hold(1, part)
