"""A worker of real agents hangs: the scenario, small."""

from __future__ import annotations

from typing import cast

import pytest

from rallypoint.bench import driver, hang
from rallypoint.bench.agents import Agent
from rallypoint.bench.processes import BenchError


class Told:
    """An agent that was notified of this cause."""

    name = "node0"

    def __init__(self, cause: str, node: str, *lines: str) -> None:
        self._verdict: dict[str, object] = {"cause": cause, "nodes": [node], "lines": lines}

    def events(self, kind: str, since_s: float) -> list[dict[str, object]]:
        return [self._verdict]


@pytest.mark.parametrize(
    "told",
    [
        Told("worker_failed", "node2", "in load_data"),
        Told("hang", "node1", "in load_data"),
        Told("hang", "node2", "in barrier"),
    ],
)
def test_another_cause_is_no_figure(told: Told) -> None:
    with pytest.raises(BenchError, match="node0 received another cause"):
        hang._check_cause([cast("Agent", told)], 0.0, "node2")
    hang._check_cause([cast("Agent", Told("hang", "node2", "x", "in load_data"))], 0.0, "node2")


@pytest.mark.processes
def test_all_know_which_worker_hangs_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hang, "TIMEOUT_S", 4.0)
    figures = {each.name: each for each in hang.measure(driver.Plan(driver.NOWHERE, repeats=1), 3)}
    assert figures["until the cause"].median >= 4.0
    assert figures["over the timeout"].median == figures["until the cause"].median - 4.0
