"""A planned departure of real agents: what is counted, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import cast

import pytest

from rallypoint.bench import drain, driver
from rallypoint.bench.agents import Agent
from rallypoint.bench.event_log import EventReader, EventWriter
from rallypoint.bench.processes import BenchError


class Written:
    """An agent of which only the event log is left."""

    def __init__(self, path: Path, *steps: tuple[int, int]) -> None:
        writer = EventWriter(path)
        for at_s, (step, size) in enumerate(steps):
            writer.write("trained", float(at_s), step=step, size=size)
        self.events = EventReader(path).all


def test_the_last_step_with_all_and_the_first_without_one(tmp_path: Path) -> None:
    agent = cast("Agent", Written(tmp_path / "1", (7, 3), (8, 3), (9, 2), (10, 2)))
    assert drain._before(agent, 3)["step"] == 8
    assert [each["step"] for each in drain._after(agent, 3, 0.5)] == [9, 10]
    assert not drain._after(agent, 3, 4.0)


def test_workers_that_stop_after_different_steps_are_no_figure() -> None:
    drain._check_together([{"step": 8}, {"step": 8}])
    with pytest.raises(BenchError, match=r"different steps: \[8, 9\]"):
        drain._check_together([{"step": 9}, {"step": 8}])


def test_torchrun_agrees_on_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    plan = driver.Plan(driver.NOWHERE, ddp=True, ways=("torchrun-c10d",))
    with pytest.raises(BenchError, match="torchrun-c10d: there is no such way here") as raised:
        drain.check(plan, 3)
    assert "torchrun" not in raised.value.hint


@pytest.mark.processes
def test_no_step_is_lost_when_a_node_leaves() -> None:
    figures = {e.name: e for e in drain.measure(driver.Plan(driver.NOWHERE, repeats=1), 3)}
    assert figures[drain.LOST].values == (0.0,)
    assert figures[drain.LOST].reached
    assert figures[drain.PAUSE].median > 0


@pytest.mark.processes
@pytest.mark.verify
def test_no_step_of_a_ddp_job_is_lost() -> None:
    pytest.importorskip("torch")
    plan = driver.Plan(driver.NOWHERE, repeats=1, ddp=True, ways=("preload",))
    figures = {each.name: each for each in drain.measure(plan, 3)}
    assert figures[drain.LOST].values == (0.0,)
