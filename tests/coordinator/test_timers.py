"""Deadlines of all runs in one heap."""

from __future__ import annotations

import pytest

from rallypoint.coordinator.timers import Timers


def test_they_are_called_in_order_and_no_earlier_than_due() -> None:
    timers, called = Timers(), list[str]()
    for due_s, name in ((3.0, "c"), (1.0, "a"), (2.0, "b"), (1.0, "a2")):
        timers.call_at(due_s, lambda name=name: called.append(name))  # type: ignore[misc]
    timers.run_due(2.0)
    assert called == ["a", "a2", "b"]
    assert timers.next_due_s() == 3.0


def test_what_a_timer_sets_is_called_next_time() -> None:
    timers, called = Timers(), list[int]()

    def again() -> None:
        called.append(1)
        timers.call_at(0.0, again)

    timers.call_at(0.0, again)
    timers.run_due(1.0)
    assert called == [1]
    timers.run_due(1.0)
    assert called == [1, 1]


def test_one_that_raises_does_not_take_the_others_along() -> None:
    timers, called = Timers(), list[str]()

    def fails() -> None:
        raise AssertionError("a broken invariant")

    timers.call_at(1.0, fails)
    timers.call_at(1.0, lambda: called.append("next"))
    with pytest.raises(AssertionError):
        timers.run_due(1.0)
    timers.run_due(1.0)
    assert called == ["next"]
