"""SUSPENDED: its reasons, what waits for the ledger meanwhile, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.suspension import Suspension, SuspensionCause
from rallypoint.core.values import ChangeKind, Outcome, Phase
from tests.core.driver import Driver, node_id

LEASE, COMMIT, APPEND = SuspensionCause.LEASE, SuspensionCause.COMMIT, SuspensionCause.APPEND
CAUSES = (LEASE, COMMIT, APPEND)


def met(*names: str, **settings: Any) -> Driver:
    """A run with an active round of these members. Its effects are taken."""
    driver = Driver(max=len(names), **settings)
    driver.join(*names)
    assert driver.phase is Phase.ACTIVE
    driver.take()
    return driver


def told(driver: Driver, kind: type[do.Effect]) -> list[do.Effect]:
    return [effect for _, effect in driver.effects if isinstance(effect, kind)]


@pytest.mark.parametrize("first", CAUSES)
@pytest.mark.parametrize("second", CAUSES)
def test_a_run_continues_when_the_last_reason_is_cleared(
    first: SuspensionCause, second: SuspensionCause
) -> None:
    driver = met("a", "b")
    driver.lose_ledger(first)
    driver.lose_ledger(second)
    driver.restore_ledger(second)
    assert (driver.phase is Phase.ACTIVE) == (first is second)
    driver.restore_ledger(first)
    assert driver.phase is Phase.ACTIVE


@pytest.mark.parametrize("other", [COMMIT, APPEND])
def test_a_reason_that_was_not_raised_cannot_be_cleared(other: SuspensionCause) -> None:
    driver = met("a", "b")
    driver.lose_ledger(LEASE)
    driver.restore_ledger(other)
    assert driver.phase is Phase.SUSPENDED


def test_the_most_important_reason_is_shown() -> None:
    suspension = Suspension()
    for cause in reversed(SuspensionCause):
        suspension.begin(cause, f"because of {cause}", 0.0)
        assert suspension.reason == f"because of {cause}"
    assert len(suspension.reasons) == len(SuspensionCause)
    assert not suspension.end(SuspensionCause.DEPOSED)
    assert suspension.end(LEASE)
    assert not suspension.end(LEASE)


@pytest.mark.parametrize("cause", CAUSES)
def test_a_close_that_is_committed_while_suspended_takes_effect_and_is_not_written_again(
    cause: SuspensionCause,
) -> None:
    driver = met("a", "b", manual_commit=False)
    driver.manual_commit = True
    driver.close(Outcome.SUCCEEDED, "trained")
    driver.lose_ledger(cause)
    driver.commit()
    assert not told(driver, do.Announce)
    driver.restore_ledger(cause)
    assert driver.phase is Phase.CLOSED
    assert len(told(driver, do.Commit)) == len(told(driver, do.Announce)) == 1


@pytest.mark.parametrize("cause", CAUSES)
def test_a_round_that_is_committed_while_suspended_is_published_and_not_written_again(
    cause: SuspensionCause,
) -> None:
    driver = Driver(max=2, manual_commit=True)
    driver.join("a", "b")
    driver.lose_ledger(cause)
    driver.commit()
    assert not told(driver, do.Publish)
    driver.restore_ledger(cause)
    assert driver.phase is Phase.ACTIVE
    assert len(told(driver, do.Commit)) == len(told(driver, do.Publish)) == 1


def test_a_round_that_is_committed_while_suspended_and_lost_a_member_is_not_published() -> None:
    driver = Driver(max=3, min=2, manual_commit=True)
    driver.join("a", "b", "c")
    driver.lose_ledger()
    driver.commit()
    driver.leave("c")
    driver.restore_ledger()
    driver.advance(1.0)
    assert not told(driver, do.Publish)
    assert driver.phase is Phase.COMMITTING  # the next round, of those that are left
    driver.commit()
    assert driver.names == ["a", "b"]


def test_a_close_that_was_asked_for_while_suspended_follows_the_round_that_was_committed() -> None:
    driver = Driver(max=2, manual_commit=True)
    driver.join("a", "b")
    driver.lose_ledger()
    driver.commit()
    driver.close()
    driver.restore_ledger()
    assert not told(driver, do.Publish)
    driver.commit()
    assert driver.phase is Phase.CLOSED


REPORTS: dict[ChangeKind, Callable[[Driver], None]] = {
    ChangeKind.WORKER_FAILED: lambda driver: driver.fail("a"),
    ChangeKind.NODE_LEFT: lambda driver: driver.depart("a"),
    ChangeKind.READY_AGAIN: lambda driver: driver.ready("a"),
}


@pytest.mark.parametrize("kind", REPORTS, ids=str)
@pytest.mark.parametrize("cause", CAUSES)
def test_a_reported_failure_breaks_the_round_at_once(
    kind: ChangeKind, cause: SuspensionCause
) -> None:
    driver = met("a", "b", "c", restarts=None)
    driver.lose_ledger(cause)
    REPORTS[kind](driver)
    (broken,) = told(driver, do.Break)
    assert isinstance(broken, do.Break)
    assert broken.change.kind is kind
    driver.advance(600.0)
    assert driver.run.suspended_reason
    assert not told(driver, do.Commit)
    assert not told(driver, do.Verdict)
    driver.restore_ledger(cause)
    driver.answer("b", "c")
    driver.ready("a", "b", "c")
    driver.advance(60.0)
    assert len(told(driver, do.Break)) == 1
    assert driver.phase is Phase.ACTIVE
    assert driver.run.number == 2


def test_a_goodbye_breaks_the_round_at_once() -> None:
    driver = met("a", "b", "c")
    driver.lose_ledger()
    driver.leave("a")
    assert len(told(driver, do.Break)) == len(told(driver, do.Forget)) == 1


def test_a_done_node_breaks_no_round() -> None:
    driver = met("a", "b", "c")
    driver.lose_ledger()
    driver.done("a", "b")
    driver.leave("a")
    assert not told(driver, do.Break)
    driver.done("c")
    assert not told(driver, do.Commit)
    driver.restore_ledger()
    assert driver.phase is Phase.CLOSED
    assert driver.run.close is not None
    assert driver.run.close.outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("kind", REPORTS, ids=str)
def test_a_successor_ends_the_round_that_was_broken_while_suspended(kind: ChangeKind) -> None:
    """The next coordinator takes the round for active. The nodes say why it has ended."""
    driver = met("a", "b", "c", restarts=None)
    driver.lose_ledger()
    REPORTS[kind](driver)
    driver.fail_over()
    driver.take()
    driver.attach("a", "b", "c")
    driver.ready("b")
    (broken,) = told(driver, do.Break)
    assert isinstance(broken, do.Break)
    assert broken.change.kind is kind
    assert broken.change.nodes == ("a",)
    driver.answer("a", "c")
    driver.ready("a", "c")
    driver.advance(60.0)
    assert driver.phase is Phase.ACTIVE
    assert driver.run.number == 2


def test_a_freed_name_goes_to_the_waiting_node() -> None:
    driver = met("a", "b", "c")
    driver.lose_ledger()
    driver.attach("a'")
    assert not told(driver, do.Welcome)
    driver.leave("a")
    assert len(told(driver, do.Welcome)) == 1
    assert driver.is_connected("a'")


@pytest.mark.parametrize("is_closed", [True, False])
def test_an_open_case_continues_and_a_closed_one_does_not(is_closed: bool) -> None:
    driver = met("a", "b", "c", restarts=None)
    driver.fail("a")
    if is_closed:
        driver.answer("b", "c")
        driver.advance(driver.settings.settle_s)
    driver.lose_ledger()
    driver.take()
    driver.restore_ledger()
    assert len(told(driver, do.ProbeRound)) == (0 if is_closed else 1)


def test_silence_during_an_outage_only_makes_a_suspect() -> None:
    driver = met("a", "b", grace=5.0)
    driver.lose_ledger()
    driver.advance(60.0)
    driver.silent("a", silent_s=60.0)
    driver.restore_ledger()
    driver.advance(driver.settings.lost_after_s - driver.settings.suspect_after_s - 0.1)
    assert driver.run.roster.living(node_id("a"))
    driver.advance(0.2)
    assert not driver.run.roster.living(node_id("a"))


def test_the_mass_guard_lasts_as_long_after_an_outage_that_is_over() -> None:
    names = [f"n{number}" for number in range(10)]
    driver = met(*names, mass_min=2, mass_grace=120.0)
    driver.lose_ledger()
    driver.advance(60.0)
    driver.restore_ledger()
    driver.fail(names[0])
    driver.silent(*names[5:])
    waiting = driver.run.waiting(driver.now_s)
    assert waiting is not None
    assert waiting.guard_s == 120.0


def test_the_first_of_two_closes_counts() -> None:
    driver = met("a", "b")
    driver.lose_ledger()
    driver.close(Outcome.SUCCEEDED, "trained", by="ann")
    driver.close(Outcome.STOPPED, "too late", by="bob")
    driver.restore_ledger()
    assert driver.run.close is not None
    assert (driver.run.close.outcome, driver.run.close.by) == (Outcome.SUCCEEDED, "ann")


def test_the_end_of_a_former_connection_ends_no_wait_for_a_name() -> None:
    driver = met("a", "b")
    driver.lose_ledger()
    driver.attach("a'")
    former = driver._links["a'"]
    driver.attach("a'")
    driver.step(on.ConnectionLost(node_id("a'"), former))
    driver.restore_ledger()
    driver.advance(driver.settings.probe_s)
    assert driver.is_connected("a'")


def test_a_connection_ends_once() -> None:
    """The first reason counts, also if a process ends later."""
    driver = met("a", "b", grace=5.0)
    driver.lose_ledger()
    driver.disconnect("a")
    driver.die("a")
    driver.restore_ledger()
    driver.advance(1.0)
    driver.attach("a")
    assert driver.is_connected("a")
    assert (driver.phase, driver.run.number) == (Phase.ACTIVE, 1)


def test_a_deposed_coordinator_sends_nothing_more() -> None:
    driver = met("a", "b")
    driver.lose_ledger()
    driver.refuse_commit()
    driver.take()
    driver.fail("a")
    driver.leave("b")
    assert driver.take() == []
