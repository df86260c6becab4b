"""The simulated times beside the measured ones: each within a factor of two.

The measurements are those of docs/scale.md and docs/operations.md, made with real sockets and
processes. The costs of the simulation were taken at 9,000 nodes and from none of these.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from rallypoint.simulation.fleet import costs
from rallypoint.simulation.fleet.failures import Failure
from rallypoint.simulation.fleet.play import Result, play
from rallypoint.simulation.fleet.workload import Workload

DOCS = Path(__file__).parents[2] / "docs"
BURST_S = 0.025
"""Since the table was measured, processes that end together are waited for, for this time."""


def regrouped(failure: Failure, **workload: Any) -> Result:
    """One regroup of workers that stop and start at once, and that fail with no peer."""
    given: dict[str, Any] = {"seconds": 700.0, "mtbf_s": math.inf, "start_s": 0.0, "stop_s": 0.0}
    given |= {"coordinator": "apart", "peers_fail": False, **workload}
    return play(Workload(**given), {}, [failure], seed=1)


def scale_ms(row: str, column: int) -> float:
    """A figure of docs/scale.md: its row, and which of its columns."""
    line = rf"^\| {re.escape(row)} \| ms \|(.+)\|$"
    found = re.search(line, (DOCS / "scale.md").read_text(), re.MULTILINE)
    assert found is not None, row
    return float(found[1].split("|")[column].replace(",", ""))


def assert_within_factor(simulated_s: float | None, measured_s: float) -> None:
    assert simulated_s is not None
    assert measured_s / 2 <= simulated_s <= measured_s * 2, (simulated_s, measured_s)


@pytest.mark.parametrize(("nodes", "column"), [(1_000, 0), (9_000, 1)])
def test_a_node_that_leaves(nodes: int, column: int) -> None:
    result = regrouped(Failure(600.0, "preempt", (nodes // 2,), math.inf), nodes=nodes)
    told, met = (scale_ms(f"regroup: leaving: {what}", column) for what in ("told", "met"))
    assert_within_factor(result.own.max_s, (told + met) / 1e3)


@pytest.mark.parametrize(("nodes", "column"), [(1_000, 0), (9_000, 1)])
def test_a_process_that_ends(nodes: int, column: int) -> None:
    result = regrouped(Failure(600.0, "process", (nodes // 2,), math.inf), nodes=nodes)
    row = "regroup: killed, no grace"
    told, met = (scale_ms(f"{row}: {what}", column) for what in ("told", "met"))
    assert_within_factor(result.own.max_s, (told + met) / 1e3 + BURST_S)


@pytest.mark.parametrize("nodes", [128, 1_024])
def test_the_first_round(nodes: int) -> None:
    result = regrouped(Failure(600.0, "worker", (0,), 0.0), nodes=nodes)
    column = {128: 0, 1_024: 2}[nodes]
    cold_ms = scale_ms("meet: cold", column)
    assert_within_factor(result.first_round_s, cold_ms / 1e3)


def test_a_silent_node() -> None:
    """The simulated nodes are no witnesses."""
    result = regrouped(Failure(600.0, "host", (3,), math.inf), nodes=8)
    [line] = [
        each
        for each in (DOCS / "operations.md").read_text().splitlines()
        if each.startswith("| a machine loses its power")
    ]
    measured = re.search(r"Without witnesses .* else after ([0-9.]+) s", line)
    assert measured is not None
    assert_within_factor(result.own.max_s, float(measured[1]))


def test_the_costs_are_those_of_the_page() -> None:
    page = (DOCS / "simulate.md").read_text()
    for cost in (costs.TELL, costs.READ):
        assert f"{cost.seconds * 1e6:.1f} µs" in page
    assert f"{costs.ATTACH.seconds * 1e6:.0f} µs" in page
    told_ms = scale_ms("regroup: leaving: told", 1)
    warm_ms, cold_ms = scale_ms("meet: warm", 4), scale_ms("meet: cold", 4)
    assert costs.TELL.seconds == pytest.approx(told_ms / 1e3 / 9_000)
    assert costs.READ.seconds == pytest.approx((warm_ms - told_ms) / 1e3 / 9_000)
    assert costs.ATTACH.seconds == pytest.approx((cold_ms - warm_ms) / 1e3 / 9_000)
