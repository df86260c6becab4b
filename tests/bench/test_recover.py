"""How a recovery is split, from the event logs of agents and workers; and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, cast

import pytest

from rallypoint.bench import driver, recover
from rallypoint.bench.agents import PLAIN, Agent
from rallypoint.bench.event_log import EventReader, EventWriter
from rallypoint.bench.processes import BenchError, end, wait_until
from rallypoint.bench.ways import WAYS, Way

KILLED_S = 100.0


class Written:
    """An agent of which only the event log is left."""

    def __init__(self, path: Path, **times: float) -> None:
        writer = EventWriter(path)
        writer.write("stepped", KILLED_S - 1.0)  # of the round before
        for event, at_s in times.items():
            writer.write(event, at_s)
        reader = EventReader(path)
        self.first, self.events = reader.first, reader.all

    def problem(self) -> str:
        return ""


def split(*written: Written) -> dict[str, float]:
    parts = recover.split(cast("list[Agent]", list(written)), KILLED_S)
    return {name: round(value, 3) for name, value in parts.items()}


def test_five_parts_that_add_up(tmp_path: Path) -> None:
    one = Written(tmp_path / "1", told=101.0, stopped=101.3, formed=101.5, stepped=103.0)
    two = Written(tmp_path / "2", told=101.2, stopped=101.4, formed=101.6, stepped=102.0)
    parts = split(one, two)
    assert parts == {"noticed": 1.0, "told": 0.2, "stopped": 0.2, "met": 0.2, "started": 1.4}
    assert sum(parts.values()) == pytest.approx(3.0)


def test_a_survivor_that_stops_before_the_other_is_notified(tmp_path: Path) -> None:
    one = Written(tmp_path / "1", told=101.0, stopped=101.1, formed=102.0, stepped=103.0)
    two = Written(tmp_path / "2", told=101.5, stopped=101.4, formed=102.0, stepped=103.0)
    parts = split(one, two)
    assert parts == {"noticed": 1.0, "told": 0.5, "stopped": 0.0, "met": 0.5, "started": 1.0}


def test_an_incomplete_line_is_read_later(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    reader = EventReader(path)
    assert reader.all("told") == []
    line = json.dumps({"event": "told", "at_s": 1.0}).encode() + b"\n"
    path.write_bytes(line + line[:7])
    assert len(reader.all("told")) == 1
    path.write_bytes(line + line)
    assert len(reader.all("told")) == 2


def test_a_wait_ends_when_its_event_cannot_happen_any_more() -> None:
    with pytest.raises(BenchError, match="waited for snow, but it is July"):
        wait_until(lambda: False, "snow", unless=lambda: "it is July")


def test_ddp_without_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match="--ddp needs torch") as raised:
        recover.check(driver.Plan(driver.NOWHERE, ddp=True), 3)
    assert "rallypoint[torch]" in raised.value.hint


def test_ways_that_do_not_exist_or_need_ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    plan = driver.Plan(driver.NOWHERE, ddp=True, ways=("cold", "warm"))
    with pytest.raises(BenchError, match="--ways warm: there is no such way here") as raised:
        recover.check(plan, 3)
    assert raised.value.hint.startswith("there are cold, preload, ")
    with pytest.raises(BenchError, match="--ways preload needs --ddp"):
        recover.check(driver.Plan(driver.NOWHERE, ways=("cold", "preload")), 3)


def test_ways_take_turns_and_slow_ones_have_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    asked: list[str] = []

    def once(plan: driver.Plan, nodes: int, way: Way) -> dict[str, float]:
        asked.append(way.name)
        return {recover.IN_ALL: 0.5, recover.RAISED: 0.2}

    monkeypatch.setattr(recover, "_once", once)
    names = ("preload", "torchrun-c10d")
    figures = recover.measure(driver.Plan(driver.NOWHERE, ddp=True, ways=names), 3)
    c10d = WAYS["torchrun-c10d"].repeats
    assert asked[: 2 * c10d] == [*names] * c10d
    assert asked[2 * c10d :] == ["preload"] * (WAYS["preload"].repeats - c10d)
    found = {each.name: each for each in figures}
    assert found["preload: in all"].reached is False
    assert found["preload: a worker raises"].reached is True
    assert len(found["torchrun-c10d: in all"].values) == c10d
    assert "torchrun --rdzv-backend=c10d" in found["torchrun-c10d: in all"].about


@pytest.mark.parametrize("nodes", [2, 65])
def test_the_limits_of_the_number_of_agents(nodes: int) -> None:
    with pytest.raises(BenchError, match="from 3 to 64"):
        recover.check(driver.Plan(driver.NOWHERE), nodes)


@pytest.mark.processes
def test_an_agent_that_is_killed_from_outside_is_a_problem(tmp_path: Path) -> None:
    """As the kernel kills it when memory is short: its end is not the one that is measured."""
    with driver.served() as at:
        own, other = (
            Agent(name, tmp_path, ("--nnodes", "2", "--endpoint", at.endpoint), PLAIN, "")
            for name in ("own", "other")
        )
        try:
            own.kill_all()
            other.process.kill()
            for each in (own, other):
                each.process.wait(20)
            assert own.problem() == ""
            assert other.problem().startswith("the agent of other ended with exit code -9: ")
        finally:
            end([own.process, other.process])


# -- once with everything ------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("is_embedded", [False, True])
def test_agents_recover(is_embedded: bool) -> None:
    if is_embedded:
        figures = recover.measure(driver.Plan(driver.NOWHERE, repeats=1), 3)
    else:
        with driver.served() as at:
            figures = recover.measure(driver.Plan(at, repeats=1), 3)
    found: dict[str, Any] = {each.name: each.median for each in figures}
    assert list(found)[:5] == list(recover.STAGES)
    ours = found["noticed"] + found["told"] + found["met"]
    assert found["the share that is ours"] == pytest.approx(ours)
    assert found["in all"] == pytest.approx(sum(found[name] for name in recover.STAGES))


@pytest.mark.processes
@pytest.mark.verify
@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", ["cold", "preload", "keep-workers", "torchrun-rallypoint"])
def test_a_ddp_job_recovers(way: str) -> None:
    pytest.importorskip("torch")
    with driver.served() as at:
        plan = driver.Plan(at, repeats=1, ddp=True, ways=(way,))
        figures = {each.name: each for each in recover.measure(plan, 3)}
    assert all(each.values[0] >= 0 for each in figures.values())
    assert "DDP" in figures["in all"].about
    assert WAYS[way].shown in figures["in all"].about
    assert ("noticed" in figures) == (WAYS[way].kind is Agent)
    assert recover.RAISED in figures
