"""R12: queued bytes have a limit: simulated jobs with a slow ledger and a small limit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from rallypoint.coordinator.holding import HeldAnswers
from rallypoint.coordinator.store_log import StoreLog
from rallypoint.core.store import LIMIT, StoreFailure
from rallypoint.simulation.job import Job
from rallypoint.simulation.leak_oracles import QueuesAreBounded
from rallypoint.simulation.plan import Plan, PlannedFault
from rallypoint.simulation.store_oracles import StoreIsOne

PLAN = Plan(
    nodes=4,
    min_nodes=4,
    faults=tuple(PlannedFault(at_s, "slow ledger", 5) for at_s in (6.0, 12.0, 20.0)),
    is_store=True,
    calls_per_s=20.0,
    unlogged_bytes_max=200,
)


def problems() -> list[str]:
    return Job(1, plan=PLAN).run().problems


def test_calls_for_which_there_is_no_room_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []
    answered = StoreIsOne.answered

    def counts(self: StoreIsOne, *about: Any) -> None:
        answered(self, *about)
        result = about[-1]
        if isinstance(result, StoreFailure) and result.code == LIMIT:
            refused.append(result)

    monkeypatch.setattr(StoreIsOne, "answered", counts)
    assert problems() == []
    assert refused
    assert "unlogged_bytes_max is 200" in refused[0].message


def test_a_queue_without_a_limit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoreLog, "_refusal", lambda self, size: None)
    (found,) = problems()
    assert found.startswith("budget: ")
    assert found.endswith("bytes, at most 200")


def test_bytes_that_are_not_counted_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    log_settled = StoreLog._log_settled

    def forgets(self: StoreLog, size: int) -> None:
        log_settled(self, size)
        self._unlogged_bytes = 0

    monkeypatch.setattr(StoreLog, "_log_settled", forgets)
    assert any("bytes of writes, and counts" in each for each in problems())


def test_held_answers_that_are_not_counted_are_found() -> None:
    told: list[tuple[str, str]] = []
    scene: Any = SimpleNamespace(broke=lambda rule, what: told.append((rule, what)))
    held, session = HeldAnswers(), cast(Any, object())
    run: Any = SimpleNamespace(store=SimpleNamespace(_held=held, log=None))
    held.put(session, b"answer")
    QueuesAreBounded(scene)._look("here", run)
    assert told == []
    held._answers.clear()
    QueuesAreBounded(scene)._look("here", run)
    assert told == [("budget", "here holds 0 bytes of answers, and counts 6")]
