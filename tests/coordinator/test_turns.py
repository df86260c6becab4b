"""Work that is put off is done one piece a turn, of one run after another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from rallypoint.coordinator.turns import (
    ALONE_AFTER_TICKS,
    BURST_S,
    DUTY,
    LINE_S,
    SLICE_S,
    Turns,
)
from tests.loops import ManualClock, SteppedLoop, run_virtual


def counted(name: str, times: int, log: list[str]) -> Callable[[], bool]:
    """Work of so many pieces."""
    left = times

    def work() -> bool:
        nonlocal left
        left -= 1
        log.append(name)
        return left > 0

    return work


def test_connections_before_an_attach_have_turns_too() -> None:
    """They have no run. What they put off came first for ever, and all others waited behind it."""
    loop, log = SteppedLoop(), list[str]()
    turns = Turns(loop)
    turns.later(None, counted("none", 2, log))
    turns.later("a", counted("a", 2, log))
    for _ in range(4):
        loop.turn()
    assert log == ["none", "a", "none", "a"]
    assert not turns._lines


def test_runs_take_turns_whatever_work_they_have() -> None:
    loop, log = SteppedLoop(), list[str]()
    turns = Turns(loop)
    for number in range(3):
        turns.later("a", counted(f"a{number}", 2, log))
    turns.later("b", counted("b", 3, log))
    while loop.soon:
        assert len(loop.soon) == 1, "one piece a turn"
        loop.turn()
    assert log == ["a0", "b", "a1", "b", "a2", "b", "a0", "a1", "a2"]
    assert not turns._lines


def test_work_that_fails_does_not_stop_the_others() -> None:
    loop, log = SteppedLoop(), list[str]()
    turns = Turns(loop)

    def fail() -> bool:
        raise ValueError("of one run")

    turns.later("a", fail)
    turns.later("b", counted("b", 2, log))
    with pytest.raises(ValueError, match="of one run"):
        loop.turn()
    loop.turn()
    loop.turn()
    assert log == ["b", "b"]
    assert not loop.soon


def test_work_may_queue_more_work() -> None:
    loop, log = SteppedLoop(), list[str]()
    turns = Turns(loop)

    def more() -> bool:
        turns.later("a", counted("more", 1, log))
        return True

    turns.later("a", more)
    loop.turn()
    loop.turn()
    assert log == ["more"]


def test_without_a_loop_all_work_is_done_at_once() -> None:
    log = list[str]()
    Turns().later("a", counted("a", 3, log))
    assert log == ["a"] * 3


def test_between_two_pieces_of_work_the_loop_runs() -> None:
    async def main() -> list[str]:
        log = list[str]()
        loop = asyncio.get_running_loop()
        turns = Turns(loop)
        turns.later("a", counted("a", 3, log))

        def other() -> None:
            log.append("other")
            if log.count("other") < 3:
                loop.call_soon(other)

        loop.call_soon(other)
        await asyncio.sleep(1.0)
        return log

    assert run_virtual(main()) == ["a", "other", "a", "other", "a", "other"]


def test_only_runs_that_share_the_loop_have_slices() -> None:
    turns = Turns(SteppedLoop())
    assert [turns.slice_s("a") for _ in range(3)] == [None] * 3
    assert turns.slice_s("b") == SLICE_S
    assert turns.slice_s("a") == SLICE_S
    turns.later("a", lambda: False)
    assert turns.slice_s("a") == 0.0
    assert turns.slice_s("b") == SLICE_S
    for _ in range(ALONE_AFTER_TICKS):
        turns.tick()
    assert turns.slice_s("b") is None
    assert turns.slice_s("b") is None


def test_connections_before_an_attach_do_not_share_with_a_run() -> None:
    """A connection belongs to no run until it attaches: a run that is alone need not share."""
    turns = Turns(SteppedLoop())
    for run in (None, "a", None, "a", None):
        assert turns.slice_s(run) is None
    assert turns.slice_s("b") == SLICE_S


def test_a_run_left_alone_stops_sharing_at_once() -> None:
    """It paid for slices for seconds after the nodes of the other run had gone."""
    turns = Turns(SteppedLoop())
    for run in "aba":
        turns.slice_s(run)
    turns.alone()
    assert [turns.slice_s("a") for _ in range(3)] == [None] * 3
    assert turns.slice_s("b") == SLICE_S, "the other one has come back"


def test_without_a_loop_no_run_waits() -> None:
    turns = Turns()
    assert [turns.slice_s(run) for run in "abab"] == [None] * 4


def test_long_pieces_of_work_become_rare_after_a_while() -> None:
    loop, clock = SteppedLoop(), ManualClock()
    turns = Turns(loop, clock, clock)
    turns.slice_s("others")
    turns.slice_s("long")
    log = list[tuple[str, float]]()

    def long() -> bool:
        log.append(("long", clock.now_s))
        clock.now_s += 0.005
        return True

    def short() -> bool:
        log.append(("short", clock.now_s))
        clock.now_s += 0.0001
        return True

    turns.later("long", long)
    turns.later("others", short)
    for _ in range(20_000):
        loop.turn()
    began_s, ended_s = log[0][1], clock.now_s
    long_s = 0.005 * sum(name == "long" for name, _ in log)
    assert long_s <= BURST_S + 0.01 + DUTY * (ended_s - began_s)
    assert long_s >= BURST_S
    assert sum(name == "short" for name, _ in log) > 15_000


def test_a_run_that_used_its_share_is_read_later() -> None:
    """Its next large message was read at once, as if it had credit."""
    loop, clock = SteppedLoop(), ManualClock()
    turns = Turns(loop, clock, clock)
    turns.slice_s("others")
    assert turns.slice_s("long") == SLICE_S
    turns.spent("long", 2 * BURST_S)
    assert turns.slice_s("long") == 0.0
    assert turns.slice_s("others") == SLICE_S
    turns.later("long", lambda: False)
    loop.turn()
    assert loop.delays == [pytest.approx(BURST_S / DUTY, rel=0.01)]
    clock.now_s += loop.delays[0]
    loop.turn()
    loop.turn()
    assert turns.slice_s("long") == SLICE_S


def resting(log: list[str]) -> tuple[Turns, SteppedLoop]:
    """A run, "long", that put something off and rests beside "others". Its timer never comes."""
    loop, clock = SteppedLoop(), ManualClock()
    turns = Turns(loop, clock, clock)
    turns.slice_s("others")
    turns.slice_s("long")
    turns.spent("long", 2 * BURST_S)
    turns.later("long", counted("long", 1, log))
    loop.turn()
    assert loop.delays, "it rests"
    loop.soon.clear()
    return turns, loop


def test_while_a_run_pauses_the_work_of_others_is_done_at_once() -> None:
    """It waited until the one that rests might go on: for two seconds."""
    log = list[str]()
    turns, loop = resting(log)
    turns.later("others", counted("others", 3, log))
    for _ in range(3):
        loop.turn()
    assert log == ["others"] * 3


def test_a_paused_run_continues_when_it_is_alone() -> None:
    log = list[str]()
    turns, loop = resting(log)
    turns.alone()
    loop.turn()
    assert log == ["long"]


def test_slices_that_end_with_a_whole_frame_are_not_long() -> None:
    """Forty calls at once cost a run two thirds of a second, beside one that only beat."""
    turns = Turns(SteppedLoop(), ManualClock())
    turns.slice_s("others")
    turns.slice_s("busy")
    for _ in range(10_000):
        turns.spent("busy", 1.5 * SLICE_S)
    assert turns.slice_s("busy") == SLICE_S


def test_an_ended_run_leaves_nothing_behind() -> None:
    turns = Turns(SteppedLoop(), ManualClock())
    turns.slice_s("others")
    turns.slice_s("long")
    turns.spent("long", 2 * BURST_S)
    turns.forget("long")
    assert not turns._credits
    assert not turns._rests
    assert turns.last is None


@pytest.mark.parametrize("count", [10, 100])
def test_the_last_of_many_connections_waits_a_bounded_time(count: int) -> None:
    """As the line became shorter each of those that were left waited longer."""
    loop, clock = SteppedLoop(), ManualClock()
    turns = Turns(loop, clock, clock)
    turns.slice_s("others")
    turns.slice_s("long")
    served = 0

    def work() -> bool:
        nonlocal served
        served += 1
        clock.now_s += 0.005
        return False

    turns.spent("long", BURST_S)  # as it did long ago: its credit is full
    for _ in range(count):
        turns.later("long", work)
    began_s = clock.now_s
    while served < count:
        loop.turn()
        if loop.delays:
            clock.now_s += loop.delays.pop()
    assert clock.now_s - began_s < 1.2 * LINE_S + 0.005 * count


def test_a_queue_of_many_connections_is_served_in_time() -> None:
    """Their heartbeats are in it."""
    loop, clock = SteppedLoop(), ManualClock()
    turns = Turns(loop, clock, clock)
    turns.slice_s("others")
    turns.slice_s("long")
    served: dict[int, list[float]] = {number: [] for number in range(20)}

    def of(number: int) -> Callable[[], bool]:
        def work() -> bool:
            served[number].append(clock.now_s)
            clock.now_s += 0.005
            return True

        return work

    for number in served:
        turns.later("long", of(number))
    while clock.now_s < 130.0:
        loop.turn()
        if loop.delays:
            clock.now_s += loop.delays.pop()
    for times in served.values():
        gaps = [b - a for a, b in pairwise(times)]
        assert max(gaps) < 1.5 * LINE_S
