"""Only the timer that was set last for its kind and name counts, and only once."""

from rallypoint.core.effects import TimerKind
from rallypoint.core.timers import Timers


def test_a_timer_counts_once() -> None:
    timers = Timers()
    timer = timers.set(TimerKind.SETTLE, 0.05).timer
    assert timers.is_set(TimerKind.SETTLE)
    assert timers.take(timer)
    assert not timers.is_set(TimerKind.SETTLE)
    assert not timers.take(timer)


def test_a_timer_that_was_replaced_is_stale() -> None:
    timers = Timers()
    stale = timers.set(TimerKind.GRACE, 1.0, name="a").timer
    timer = timers.set(TimerKind.GRACE, 1.0, name="a").timer
    assert not timers.take(stale)
    assert timers.take(timer)


def test_a_timer_that_was_cancelled_is_stale() -> None:
    timers = Timers()
    timer = timers.set(TimerKind.PACE, 1.0).timer
    timers.cancel(TimerKind.PACE)
    timers.cancel(TimerKind.PACE)
    assert not timers.is_set(TimerKind.PACE)
    assert not timers.take(timer)


def test_timers_of_other_kinds_and_names_do_not_count() -> None:
    timers = Timers()
    grace_a = timers.set(TimerKind.GRACE, 1.0, name="a").timer
    grace_b = timers.set(TimerKind.GRACE, 1.0, name="b").timer
    lost_a = timers.set(TimerKind.LOST, 1.0, name="a").timer
    timers.cancel(TimerKind.GRACE, "a")
    assert [timers.take(each) for each in (grace_a, grace_b, lost_a)] == [False, True, True]
