"""Operators in the simulator: what they order happens, and the oracles find it if it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rallypoint.core import ordering
from rallypoint.core.orders import NO_ORDERS, KeptOrders
from rallypoint.simulation.job import Job
from tests.kinds import seeds
from tests.simulation.planted.planting import Bug, planted, replaces
from tests.simulation.test_situations import drawn

WITHIN = 40
"""In so many worlds a planted fault is found."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


@pytest.mark.parametrize("seed", seeds(6, verify=60, long=600))
def test_operators_keep_the_rules(seed: int) -> None:
    assert Job(seed, plan=drawn("operators", seed)).run().problems == []


def found(rule: str, text: str) -> bool:
    """Whether some world shows this problem."""
    for seed in range(WITHIN):
        problems = map(str, Job(seed, plan=drawn("operators", seed)).run().problems)
        if any(each.startswith(rule) and text in each for each in problems):
            return True
    return False


def test_a_successor_that_forgets_the_orders_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def restore(self: KeptOrders, orders: Any) -> None:
        self.now = self.at_forming = self._in_marks = self._written = NO_ORDERS

    monkeypatch.setattr(KeptOrders, "restore", restore)
    assert found("R4", "has lost the eviction") or found("R3", "has lost that it was")


def test_a_coordinator_that_asks_nobody_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "ask", lambda run, drain, is_repeat=False: None)
    assert found("R7", "was asked to leave, and stays")


@replaces("rallypoint.core.operator_requests:on_admit_requested")
def _lifts_without_the_ledger(original: Any, run: Any, event: Any) -> None:
    """The eviction is lifted here, and the ledger is not told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "wanted", lambda run: None)
        original(run, event)


def _bug(*parts: Any) -> Bug:
    return Bug(name="here", rule="none", source="this test", parts=parts)


def test_an_eviction_that_stays_in_the_ledger_is_found() -> None:
    with planted(_bug(_lifts_without_the_ledger)):
        assert found("R7", "that was lifted")


def test_a_coordinator_that_admits_evicted_nodes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptOrders, "eviction_of", lambda self, name: None)
    assert found("R4", "was evicted, and is let in")
