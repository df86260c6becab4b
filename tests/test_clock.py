"""The clock that leaves out the stalls of its process (R8)."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.clock import (
    LATE_S,
    SETTLED_S,
    STALL_S,
    TICK_S,
    TURNS_IF_SLOW,
    TURNS_MIN,
    InputFirst,
    StallProofClock,
)
from tests.loops import ManualClock


def readings(*gaps_s: float) -> tuple[list[float], StallProofClock]:
    source = ManualClock()
    clock = StallProofClock(source)
    found = [clock.now_s()]
    for gap_s in gaps_s:
        source.now_s += gap_s
        found.append(clock.now_s())
    return found, clock


def test_the_clock_runs_while_the_process_does():
    found, clock = readings(0.25, 0.25, STALL_S)
    assert [each - found[0] for each in found] == [0, 0.25, 0.5, 0.5 + STALL_S]
    assert clock.stalled_s == 0


def test_a_stall_counts_as_one_tick():
    found, clock = readings(0.25, 20.0, 0.25)
    assert found[-1] - found[0] == pytest.approx(0.25 + TICK_S + 0.25)
    assert clock.stalled_s == pytest.approx(20.0 - TICK_S)


def test_several_stalls_add_up():
    _, clock = readings(20.0, 0.1, 30.0)
    assert clock.stalled_s == pytest.approx(50.0 - 2 * TICK_S)


@pytest.mark.parametrize("stall_s", [0.4, 0.6, 0.9])
def test_stalls_below_a_second_are_left_out_too(stall_s: float):
    found, _ = readings(*[stall_s] * 10)
    assert found[-1] - found[0] == pytest.approx(10 * TICK_S)


def test_a_long_stall_is_remembered_and_a_short_one_is_not():
    source = ManualClock()
    clock = StallProofClock(source)
    source.now_s += 0.9
    assert not clock.has_stalled_since(clock.now_s())
    source.now_s += 20.0
    heard_s = clock.now_s()
    assert clock.has_stalled_since(heard_s)
    for _ in range(int(SETTLED_S / TICK_S) + 1):
        source.now_s += TICK_S
        clock.now_s()
    assert clock.has_stalled_since(heard_s - 1.0)
    assert not clock.has_stalled_since(clock.now_s())


@given(st.lists(st.floats(0, 1_000, allow_nan=False), max_size=50))
def test_the_clock_goes_neither_back_nor_faster_than_time(gaps_s: list[float]):
    found, _ = readings(*gaps_s)
    steps_s = [later - earlier for earlier, later in pairwise(found)]
    for gap_s, step_s in zip(gaps_s, steps_s, strict=True):
        assert -1e-9 <= step_s <= min(gap_s, STALL_S) + 1e-6


def test_without_a_source_the_clock_is_the_systems_monotonic_clock():
    clock, before_s = StallProofClock(), time.monotonic()
    assert before_s <= clock.now_s() <= time.monotonic()


def turns(*late_s: float) -> list[float | None]:
    """What InputFirst says in each turn, of which the n-th is at n seconds."""
    asked = InputFirst()
    return [asked.tick(float(turn), late) for turn, late in enumerate(late_s)]


def test_input_is_read_before_deadlines_are_judged():
    assert turns(*[0.0] * TURNS_MIN) == [None] * (TURNS_MIN - 1) + [0.0]


@pytest.mark.parametrize("slow_turn", range(TURNS_MIN))
def test_a_slow_loop_takes_more_turns(slow_turn: int):
    late_s = [0.0] * 40
    late_s[slow_turn] = 2 * LATE_S
    told = turns(*late_s)
    assert told.index(0.0) == slow_turn + TURNS_IF_SLOW - 1


def test_an_always_slow_loop_still_judges_deadlines():
    told = turns(*[3.0] * (3 * TURNS_IF_SLOW))
    assert [each for each in told if each is not None] == [0.0, TURNS_IF_SLOW, 2 * TURNS_IF_SLOW]
