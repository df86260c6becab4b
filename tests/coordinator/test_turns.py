"""Work that is put off is done one piece a turn, of one run after another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from rallypoint.coordinator.turns import Turns
from tests.loops import run_virtual


def counted(name: str, times: int, log: list[str]) -> Callable[[], bool]:
    """Work of so many pieces."""
    left = times

    def work() -> bool:
        nonlocal left
        left -= 1
        log.append(name)
        return left > 0

    return work


class Loop:
    """An event loop's `call_soon`, turn by turn."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for each in soon:
            each()


def test_runs_take_turns_whatever_they_have_put_off() -> None:
    loop, log = Loop(), list[str]()
    turns = Turns(lambda callback: loop.soon.append(callback))
    for number in range(3):
        turns.later("a", counted(f"a{number}", 2, log))
    turns.later("b", counted("b", 3, log))
    while loop.soon:
        assert len(loop.soon) == 1, "one piece a turn"
        loop.turn()
    assert log == ["a0", "b", "a1", "b", "a2", "b", "a0", "a1", "a2"]
    assert not turns._lines


def test_work_that_fails_does_not_stop_the_others() -> None:
    loop, log = Loop(), list[str]()
    turns = Turns(lambda callback: loop.soon.append(callback))

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


def test_work_may_put_off_more() -> None:
    loop, log = Loop(), list[str]()
    turns = Turns(lambda callback: loop.soon.append(callback))

    def more() -> bool:
        turns.later("a", counted("more", 1, log))
        return True

    turns.later("a", more)
    loop.turn()
    loop.turn()
    assert log == ["more"]


def test_without_a_loop_all_is_done_at_once() -> None:
    log = list[str]()
    Turns().later("a", counted("a", 3, log))
    assert log == ["a"] * 3


def test_between_two_pieces_the_loop_does_all_else() -> None:
    async def main() -> list[str]:
        log = list[str]()
        loop = asyncio.get_running_loop()
        turns = Turns(loop.call_soon)
        turns.later("a", counted("a", 3, log))

        def other() -> None:
            log.append("other")
            if log.count("other") < 3:
                loop.call_soon(other)

        loop.call_soon(other)
        await asyncio.sleep(1.0)
        return log

    assert run_virtual(main()) == ["a", "other", "a", "other", "a", "other"]
