"""Nodes that fail again and again, in the simulator: the oracles find what is counted wrongly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from rallypoint.core import blame, cooling
from rallypoint.core.blame import NO_BLAME, KeptBlame
from rallypoint.core.formation import Counts
from rallypoint.simulation.job import Job
from tests.kinds import seeds
from tests.simulation.test_situations import drawn

WITHIN = 40
"""In so many worlds a planted fault is found."""


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


def found(rule: str, text: str, situation: str = "guilty") -> bool:
    """Whether some world shows this problem."""
    for seed in range(WITHIN):
        problems = map(str, Job(seed, plan=drawn(situation, seed)).run().problems)
        if any(each.startswith(rule) and text in each for each in problems):
            return True
    return False


def test_an_early_failure_that_counts_once_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blame, "weight_of", lambda lasted_s, settings: 1)
    assert found("budget", "")


def test_a_budget_that_is_never_refilled_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    charge = KeptBlame.charge

    def for_ever(self: KeptBlame, weight: int, settings: Any, now_s: float) -> None:
        charge(self, weight, settings, math.inf)

    monkeypatch.setattr(KeptBlame, "charge", for_ever)
    assert found("budget", "")


def test_the_same_failure_for_ever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptBlame, "failed", lambda self, failure, settings, now_s: 0)
    assert found("budget", "")


def test_an_exit_code_that_is_overlooked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blame, "ends_at_once", lambda failure, settings: False)
    assert found("budget", "")


def test_a_successor_that_forgets_the_blame_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: KeptBlame, known: Any, restarts: Any, settings: Any, now_s: Any) -> None:
        self.at_forming = NO_BLAME

    monkeypatch.setattr(KeptBlame, "restore", nothing)
    assert found("R11", "has lost blame") or found("budget", "")


def test_a_guilty_node_that_keeps_its_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooling, "update", lambda run, member: None)
    assert found("R7", "would be large enough without", "cooling")


def test_a_node_that_is_never_forgiven_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptBlame, "cooled", lambda self, now_s: [])
    assert found("R7", "is kept out", "cooling")


def test_a_run_that_waits_for_a_guilty_node_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that stay out do not count, though the minimum needs them."""
    monkeypatch.setattr(Counts, "able", Counts.ready)
    assert found("R7", "no round of", "cooling")


def test_a_successor_that_forgets_who_stays_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptBlame, "_offenders", lambda self, now_s: [])
    assert found("R9", "is not told", "cooling")


def test_an_unfit_node_that_is_taken_for_a_fit_one_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cooling, "fitness", lambda run, member, unfit: None)
    assert found("R7", "whose checks have failed", "checked")
