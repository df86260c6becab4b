"""One account cannot take all runs or all connections, and cannot begin runs without a pause."""

from __future__ import annotations

import pytest

from rallypoint.core.quotas import (
    EVICT_AFTER_S,
    PACES_MAX,
    RUNS_AT_ONCE,
    WAIT_MAX_S,
    Account,
    Holdings,
    Idle,
    Keep,
    Paces,
    keep_s,
    may_evict,
)

A, B = Account("t", "10.0.0.1"), Account("t", "10.0.0.2")
OTHER = Account("another", "10.0.0.1")


def test_one_account_leaves_an_eighth_to_the_others() -> None:
    held = Holdings()
    while held.has_room(A, 800):
        held.take(A)
    assert held.total == 700
    assert not held.has_room(B, 800), "the token is the same, and has taken more than its part"
    while held.has_room(OTHER, 800):
        held.take(OTHER)
    assert held.total == 800
    held.give_back(A)
    assert not held.has_room(A, 800)
    assert held.has_room(Account("third", "10.0.0.1"), 800)
    assert held.has_room(A, 800, more=0) is False
    assert held.has_room(OTHER, 800, more=0)


def test_an_account_that_released_all_holds_nothing() -> None:
    held = Holdings()
    for _ in range(7):
        held.take(A)
    for _ in range(7):
        held.give_back(A)
    assert held.total == 0
    assert held._own == {}


@pytest.mark.parametrize("most", range(4))
def test_small_limits_are_whole(most: int) -> None:
    held = Holdings()
    for _ in range(most):
        assert held.has_room(A, most)
        held.take(A)
    assert not held.has_room(A, most)


def test_runs_are_begun_at_once_then_at_a_rate_then_not() -> None:
    paces = Paces(100.0)
    waits = [paces.wait_s(A, 50.0) for _ in range(RUNS_AT_ONCE + int(WAIT_MAX_S * 100) + 50)]
    assert set(waits[:RUNS_AT_ONCE]) == {0.0}
    then = waits[RUNS_AT_ONCE : RUNS_AT_ONCE + int(WAIT_MAX_S * 100) - 1]
    assert then == pytest.approx([0.01 * n for n in range(1, len(then) + 1)])
    assert waits[-1] is None
    assert paces.wait_s(B, 50.0) == 0.0
    again = paces.wait_s(A, 51.0)
    assert again is not None, "who was refused has lost no turn"
    assert again == pytest.approx(WAIT_MAX_S - 1, abs=0.05)
    assert paces.wait_s(A, 500.0) == 0.0


def test_unused_turns_are_not_saved() -> None:
    paces = Paces(1.0, at_once=2)
    assert paces.wait_s(A, 0.0) == 0.0
    assert [paces.wait_s(A, 1_000.0) for _ in range(3)] == [0.0, 0.0, 1.0]


def test_the_number_of_remembered_accounts_is_bounded() -> None:
    """The accounts are forgotten whose last run is the oldest."""
    paces = Paces(0.001, at_once=1)
    assert paces.wait_s(A, 0.0) == 0.0
    for number in range(2 * PACES_MAX):
        assert paces.wait_s(Account("t", str(number)), 0.0) == 0.0
    assert len(paces._next_s) == PACES_MAX
    assert paces.wait_s(Account("t", str(2 * PACES_MAX - 1)), 0.0) is None
    assert paces.wait_s(A, 0.0) == 0.0


def test_an_empty_run_is_kept_for_a_limited_time() -> None:
    keep = Keep(closed_s=3_600.0, empty_s=600.0, unformed_s=10.0)
    assert keep_s(Idle.UNFORMED, 0, keep) == 10.0
    assert keep_s(Idle.UNFORMED, 1, keep) == 10.0
    assert keep_s(Idle.UNFORMED, 2, keep) == 600.0
    assert keep_s(Idle.EMPTY, 1, keep) == 600.0
    assert keep_s(Idle.CLOSED, 1, keep) == 3_600.0


def test_some_runs_may_be_removed_early() -> None:
    assert may_evict(Idle.UNFORMED, 0.0, is_kept_here=False)
    for kind in (Idle.CLOSED, Idle.EMPTY):
        assert not may_evict(kind, EVICT_AFTER_S / 2, is_kept_here=True)
        assert may_evict(kind, EVICT_AFTER_S, is_kept_here=True)
    assert not may_evict(Idle.EMPTY, 10 * EVICT_AFTER_S, is_kept_here=False)
