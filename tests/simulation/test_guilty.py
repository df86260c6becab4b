"""Nodes that fail again and again, in the simulator. What the oracles find is in `planted`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rallypoint.simulation.job import Job
from tests.kinds import seeds
from tests.simulation.test_situations import drawn


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


@pytest.mark.parametrize("seed", seeds(6, verify=60, long=600))
def test_guilty_nodes_keep_the_rules(seed: int) -> None:
    assert Job(seed, plan=drawn("guilty", seed)).run().problems == []


@pytest.mark.parametrize("seed", seeds(6, verify=60, long=600))
def test_nodes_that_stay_out_keep_the_rules(seed: int) -> None:
    assert Job(seed, plan=drawn("cooling", seed)).run().problems == []


@pytest.mark.parametrize("seed", seeds(6, verify=60, long=600))
def test_nodes_with_checks_keep_the_rules(seed: int) -> None:
    assert Job(seed, plan=drawn("checked", seed)).run().problems == []
