"""The clock of a coordinator without sockets."""

from __future__ import annotations

import asyncio

import pytest

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.driver import CoordinatorDriver
from tests.loops import VirtualLoop, run_virtual


def test_r8_after_a_stall_input_comes_before_the_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        driver = CoordinatorDriver(CoordinatorConfig())
        coordinator = driver.coordinator
        happened: list[float | str] = []
        monkeypatch.setattr(coordinator, "tick", happened.append)
        await driver.start()
        await asyncio.sleep(5.0)
        assert len(happened) > 1
        happened.clear()
        loop._now_s += 30.0
        loop.call_later(0.001, happened.append, "input")
        await asyncio.sleep(5.0)
        driver.stop_ticking()
        assert happened[0] == "input"
        assert len(happened) > 1
        assert all(isinstance(each, float) for each in happened[1:])
        await driver.ownership.aclose()

    run_virtual(main())
