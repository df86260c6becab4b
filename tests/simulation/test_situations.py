"""Situations: each is drawn, keeps the rules, and comes to what it is about."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from rallypoint.core import events as on
from rallypoint.core import ledger_events
from rallypoint.core.membership import _HANDLER_OF, Membership
from rallypoint.core.values import Phase
from rallypoint.simulation.faults import ALL_FAULTS
from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import Plan
from rallypoint.simulation.situations import (
    ADDED,
    LATER_SITUATIONS,
    RARE,
    SITUATIONS,
    _plain,
    situated,
)

SEEDS = 3
PLAIN = Plan(nodes=3, min_nodes=2)
ALL = {
    **SITUATIONS,
    **ADDED,
    **LATER_SITUATIONS,
    **{name: change for name, (_, change) in RARE.items()},
}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


def drawn(name: str, seed: int) -> Plan:
    return ALL[name](_plain(name, PLAIN), random.Random(seed)).sound()


def test_each_situation_is_drawn_and_most_seeds_have_none() -> None:
    names = [situated(seed, PLAIN).situation for seed in range(900)]
    assert set(names) == {"", *ALL}
    assert names.count("") > 600


@pytest.mark.parametrize("name", ALL)
def test_its_faults_are_known(name: str) -> None:
    kinds = {fault.kind for seed in range(50) for fault in drawn(name, seed).faults}
    assert kinds <= set(ALL_FAULTS)


@pytest.mark.parametrize("name", ALL)
def test_its_worlds_keep_the_rules(name: str) -> None:
    for seed in range(SEEDS):
        assert Job(seed, plan=drawn(name, seed)).run().problems == []


def test_records_are_confirmed_while_a_run_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[on.Event] = []
    table: Any = _HANDLER_OF

    def recorded(membership: Membership, event: on.Committed) -> None:
        seen.append(event)
        ledger_events.record_committed(membership, event)

    monkeypatch.setitem(table, (Phase.SUSPENDED, on.Committed), recorded)
    for seed in range(40):
        Job(seed, plan=drawn("while writing", seed)).run()
        if seen:
            return
    raise AssertionError("no record was confirmed while its run was suspended")
