"""The clock that stands still while its process did (R8)."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.clock import STALL_S, TICK_S, StallProofClock


class Source:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def readings(*gaps_s: float) -> tuple[list[float], StallProofClock]:
    source = Source()
    clock = StallProofClock(source)
    found = [clock.now_s()]
    for gap_s in gaps_s:
        source.now_s += gap_s
        found.append(clock.now_s())
    return found, clock


def test_it_runs_while_the_process_does():
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


@given(st.lists(st.floats(0, 1_000, allow_nan=False), max_size=50))
def test_it_never_goes_back_nor_faster_than_time(gaps_s: list[float]):
    found, _ = readings(*gaps_s)
    steps_s = [later - earlier for earlier, later in pairwise(found)]
    for gap_s, step_s in zip(gaps_s, steps_s, strict=True):
        assert -1e-9 <= step_s <= min(gap_s, STALL_S) + 1e-6


def test_without_a_source_it_is_the_systems_monotonic_clock():
    clock, before_s = StallProofClock(), time.monotonic()
    assert before_s <= clock.now_s() <= time.monotonic()
