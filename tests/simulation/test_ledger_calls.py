"""Calls of ledgers by several processes under faults: one order explains all outcomes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rallypoint.ledger.file.disk import Disk, LinkResult
from rallypoint.simulation import ledger_calls
from rallypoint.simulation.ledger_calls import LedgerCalls

ENGINES = ("etcd", "file", "file-local")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(3))
def test_one_order_explains_all_outcomes(engine: str, seed: int) -> None:
    calls = LedgerCalls(seed, engine).run()
    assert calls.problems == []
    assert calls.counts["swapped"] > 10
    assert calls.counts["created"] > 5


def test_a_search_that_is_given_up_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nothing of that key would have been checked, and nobody would know."""
    monkeypatch.setattr(ledger_calls, "STATES_MAX", 3)
    calls = LedgerCalls(0, "etcd").run()
    assert any(ledger_calls.UNDECIDED in each for each in calls.problems)


@pytest.mark.verify
@pytest.mark.parametrize("engine", ENGINES)
def test_one_order_explains_all_outcomes_of_many_seeds(engine: str) -> None:
    found = {seed: LedgerCalls(seed, engine).run().problems for seed in range(3, 33)}
    assert {seed: problems for seed, problems in found.items() if problems} == {}


@pytest.mark.parametrize(
    ("engine", "seed"),
    [
        # The name of the ledger's own folder was not forced to the disk.
        ("file-local", 6),
        # A stale handle was taken for a register that does not exist.
        ("file", 13),
    ],
)
def test_a_seed_that_found_a_fault(engine: str, seed: int) -> None:
    assert LedgerCalls(seed, engine).run().problems == []


def found(engine: str, first: int) -> str:
    """The first problem of 30 seeds; empty without one. `first`: a seed that found one once."""
    for seed in range(first, first + 30):
        problems = LedgerCalls(seed, engine).run().problems
        if problems:
            return problems[0]
    return ""


def test_names_that_are_never_synced_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Disk, "sync", lambda disk, folder: None)
    assert found("file-local", 0)


def test_a_lost_answer_that_counts_as_taken_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(disk: Disk, temporary: object, name: object) -> LinkResult:
        try:
            disk.system.link(temporary, name)  # type: ignore[arg-type]
        except FileExistsError:
            return LinkResult.TAKEN
        return LinkResult.LINKED

    monkeypatch.setattr(Disk, "link", link)
    assert "no order explains" in found("file", 20)


def story(seed: int) -> str:
    """Everything that happened, as text."""
    calls = LedgerCalls(seed, "file").run()
    return repr((calls.world.steps, calls.events, calls.counts, calls.problems))


def test_one_seed_gives_one_story() -> None:
    assert story(3) == story(3)
    assert story(3) != story(4)


@pytest.mark.processes
def test_one_seed_gives_one_story_whatever_the_hash_seed() -> None:
    code = "from tests.simulation.test_ledger_calls import story; print(story(3))"
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
