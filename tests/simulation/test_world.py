"""Processes of a simulated world: their turns, clocks and ends; and one seed, one history."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from rallypoint.simulation.clocks import MachineClock
from rallypoint.simulation.world import World


def test_time_passes_at_once() -> None:
    world = World(1)
    process = world.process("one")
    task = process.start(asyncio.sleep(3_600, "slept"))
    assert world.run_until(4_000, task.done)
    assert task.result() == "slept"
    assert world.now_s == pytest.approx(3_600)


def test_a_turn_runs_what_was_ready_and_not_what_that_adds() -> None:
    world = World(1)
    process = world.process("one", turn_cost_s=1.0)
    ran: list[tuple[str, float]] = []

    def first() -> None:
        ran.append(("first", world.now_s))
        process.loop.call_soon(lambda: ran.append(("added", world.now_s)))

    process.soon(first)
    process.soon(lambda: ran.append(("second", world.now_s)))
    world.run_until(10)
    assert ran == [("first", 0.0), ("second", 0.0), ("added", 1.0)]


def test_a_timer_comes_after_its_time_by_the_cost_of_turns() -> None:
    world = World(1)
    process = world.process("one", turn_cost_s=0.5)
    ran: list[float] = []
    process.loop.call_later(0.7, lambda: ran.append(world.now_s))
    process.soon(lambda: None)
    world.after(0.4, lambda: process.soon(lambda: None))
    world.run_until(10)
    assert ran == [pytest.approx(1.0)]  # turns at 0 and 0.5, each 0.5 s long


def test_a_frozen_process_finds_its_timers_due_and_its_input_first() -> None:
    world = World(1)
    process = world.process("one")
    ran: list[tuple[str, float]] = []
    process.loop.call_later(1.0, lambda: ran.append(("timer", process.clock_s())))
    world.after(0.5, process.freeze)
    world.after(2.0, lambda: process.soon(lambda: ran.append(("input", process.clock_s()))))
    world.after(5.0, process.thaw)
    world.run_until(10)
    assert [what for what, _ in ran] == ["input", "timer"]
    assert [at for _, at in ran] == [pytest.approx(5.0)] * 2


def test_a_suspended_machine_does_not_count_the_time() -> None:
    world = World(1)
    process = world.process("one")
    ran: list[float] = []
    process.loop.call_later(1.0, lambda: ran.append(world.now_s))
    world.after(0.5, process.suspend)
    world.after(5.0, process.resume)
    world.run_until(10)
    assert ran == [pytest.approx(5.5)]
    assert process.clock_s() == pytest.approx(5.5)


def test_clocks_have_rates_of_their_own() -> None:
    world = World(1)
    quick = world.process("quick", MachineClock(rate=2.0, offset_s=100.0))
    ran: list[float] = []
    quick.loop.call_later(1.0, lambda: ran.append(world.now_s))
    world.run_until(10)
    assert ran == [pytest.approx(0.5)]
    assert quick.clock_s() == pytest.approx(120.0)
    quick.clock.set_rate(world.now_s, 0.5)
    quick.loop.call_later(1.0, lambda: ran.append(world.now_s))
    world.run_until(20)
    assert ran[1] == pytest.approx(12.0)
    assert quick.clock_s() == pytest.approx(125.0)


def test_a_killed_process_does_nothing_more() -> None:
    world = World(1)
    process = world.process("one")
    ran: list[str] = []

    async def main() -> None:
        try:
            await asyncio.sleep(2)
            ran.append("slept")
        finally:
            ran.append("ended")

    process.start(main())
    world.after(1.0, process.kill)
    world.run_until(10)
    assert "slept" not in ran
    assert not world.troubles


def test_an_error_that_nobody_reads_is_a_trouble() -> None:
    world = World(1)
    process = world.process("one")

    async def main() -> None:
        raise ValueError("nobody waits for this")

    process.start(main())
    world.run_until(1)
    (trouble,) = world.unread()
    assert "nobody waits for this" in trouble


def history(seed: int) -> list[Any]:
    world = World(seed)
    seen: list[Any] = []
    processes = [world.process(f"node-{index}") for index in range(3)]

    async def main(index: int) -> None:
        process = processes[index]
        for turn in range(20):
            try:
                async with asyncio.timeout(process.random.random()):
                    await asyncio.sleep(process.random.random())
            except TimeoutError:
                seen.append((process.name, turn, "late"))
            other = processes[world.random.randrange(3)]
            other.soon(seen.append, (process.name, other.name, round(world.now_s, 9)))

    for index, process in enumerate(processes):
        process.start(main(index))
    world.after(3.0, processes[1].freeze)
    world.after(4.0, processes[1].thaw)
    world.run_until(100)
    return [*seen, world.steps, world.troubles]


def test_one_seed_gives_one_history() -> None:
    assert history(5) == history(5)
    assert history(5) != history(6)


@pytest.mark.processes
def test_one_seed_gives_one_history_whatever_the_hash_seed() -> None:
    code = "from tests.simulation.test_world import history; print(history(5))"
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert printed[0] == printed[1] != b""


def test_a_process_that_spins_ends_the_world() -> None:
    world = World(1)
    process = world.process("spinning")

    async def spin() -> None:
        while True:  # noqa: ASYNC110 - it spins
            await asyncio.sleep(0)

    process.start(spin())
    assert not world.run_until(10.0)
    assert "spins" in world.troubles[0]
    world.close()


def test_a_generator_that_nobody_ends_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would run its code when it is collected, outside of any process."""
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: said.append(problem.exc_value))

    async def inside() -> AsyncGenerator[int, None]:
        await asyncio.sleep(10.0)
        yield 1

    async def around() -> AsyncGenerator[int, None]:
        async with contextlib.aclosing(inside()) as numbers:
            async for number in numbers:
                yield number

    async def begins() -> None:
        step: Any = around().__anext__()
        step.send(None)

    world = World(1)
    world.process("a").start(begins())
    world.run_until(1.0)
    gc.collect()
    world.close()
    assert said == []
