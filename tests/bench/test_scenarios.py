"""Each scenario once, small: it gives its figures. No time is judged here."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rallypoint.bench import (
    agree,
    driver,
    failover,
    flood,
    idle,
    join,
    meet,
    model,
    neighbour,
    regroup,
    runs,
    store,
)
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.node_processes import NodeProcesses
from tests.kinds import only_long

pytestmark = pytest.mark.processes

MOMENTS = ("told", "met")
PROGRESS = ("", ", with progress")


@pytest.fixture(scope="module")
def plan():
    with driver.served() as at:
        yield driver.Plan(at, repeats=2, seconds=0.5, runs=3)


def found(figures: list[Figure]) -> dict[str, Figure]:
    return {each.name: each for each in figures}


def test_meet(plan: driver.Plan) -> None:
    figures = found(meet.measure(plan, 4))
    assert {"warm", "floor warm", "cold", "floor cold", "warm / floor"} <= set(figures)
    assert len(figures["warm"].values) == 2
    assert all(value > 0 for each in figures.values() for value in each.values)


@pytest.mark.parametrize("processes", [1, 2])
def test_programs_that_join(processes: int) -> None:
    plan = driver.Plan(driver.NOWHERE, repeats=1, processes=processes)
    [figure] = join.measure(plan, 3)
    assert f"{processes} process" in figure.about
    assert figure.target == Target(500.0)
    assert 0 < figure.median < 60_000


def test_regroup(plan: driver.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """All events of a node. Settings make a frozen node suspect sooner here."""
    monkeypatch.setattr(regroup, "SUSPECT_AFTER_S", 0.6)
    monkeypatch.setattr(regroup, "FROZEN_S", 0.9)
    happened_s, formed_s = [], []
    happen, span = regroup._happen, driver.span

    def noted_happen(*arguments: Any) -> float:
        happened_s.append(happen(*arguments))
        return happened_s[-1]

    def noted_span(answers: list[dict[str, Any]], last: str) -> float:
        formed_s.append(max(each[last] for each in answers))
        return span(answers, last)

    monkeypatch.setattr(regroup, "_happen", noted_happen)
    monkeypatch.setattr(driver, "span", noted_span)
    once = driver.Plan(plan.at, repeats=1)
    figures = found(regroup.measure(once, 3))
    assert set(figures) == {f"{event}: {what}" for event in regroup.EVENTS for what in MOMENTS}
    least_ms = {"arriving: told": 990}
    for name, each in figures.items():
        [value] = each.values
        assert value > least_ms.get(name, 0), name
    # The probe of the frozen node begins when all are notified. This process may ask the nodes to
    # meet at any time within it.
    assert list(regroup.EVENTS)[-1] == regroup.FROZEN
    assert formed_s[-1] - happened_s[-1] > 0.99


@pytest.mark.parametrize(
    "event", [regroup.CUT_OFF, "killed", "leaving", "arriving", regroup.FROZEN]
)
@pytest.mark.parametrize(("nodes", "processes"), [(2, 4), (4, 4), (5, 3)])
def test_regroup_in_several_processes(
    plan: driver.Plan, monkeypatch: pytest.MonkeyPatch, event: str, nodes: int, processes: int
) -> None:
    monkeypatch.setattr(regroup, "SUSPECT_AFTER_S", 0.6)
    monkeypatch.setattr(regroup, "FROZEN_S", 0.9)
    monkeypatch.setattr(regroup, "EVENTS", {event: regroup.EVENTS[event]})
    once = driver.Plan(plan.at, repeats=1, processes=processes)
    assert len(regroup.measure(once, nodes)) == len(MOMENTS)


def test_idle(plan: driver.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "STEADY_S", 0.0)
    assert {"messages", "bytes", "CPU", "memory"} == set(found(idle.measure(plan, 3)))


def test_idle_with_progress(plan: driver.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports travel in heartbeats: they are larger, and not more."""
    monkeypatch.setattr(idle, "STEADY_S", 0.0)
    monkeypatch.setattr(idle, "WINDOW_S", 2.0)
    reporting = driver.Plan(plan.at, seconds=4.0, progress=True)
    figures = found(idle.measure(reporting, 64))
    names = {f"{name}{suffix}" for name in ("messages", "bytes", "CPU") for suffix in PROGRESS}
    assert names | {idle.PROGRESS_CPU, "memory"} == set(figures)
    assert figures[idle.PROGRESS_CPU].target == Target(10.0)
    quiet, reports = (figures[f"bytes{suffix}"].median for suffix in PROGRESS)
    messages = figures["messages, with progress"].median
    # On a machine that stops meanwhile, both may be fewer.
    assert reports / messages > quiet / figures["messages"].median + 1.0


@pytest.mark.parametrize("processes", [1, 2])
def test_nodes_agree_with_three_messages_each(plan: driver.Plan, processes: int) -> None:
    twice = driver.Plan(plan.at, repeats=2, processes=processes)
    figures = found(agree.measure(twice, 5))
    assert figures["messages of a round"].values == (1.0, 1.0)
    assert figures["messages of a drain"].values == (3.0, 3.0)
    assert figures["messages of a drain"].reached
    assert figures["messages of the node that drains"].values == (4.0, 4.0)
    assert figures["agreed"].median > 0


def test_store(plan: driver.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CALLS_IN_ALL", 60)
    monkeypatch.setattr(store, "BLOCKING_CALLS", 20)
    figures = found(store.measure(plan, 3))
    assert {"set", "get", "add", "barrier", "set, one blocking caller"} == set(figures)
    assert all(value > 0 for each in figures.values() for value in each.values)


def test_one_of_many_runs(plan: driver.Plan) -> None:
    figures = found(runs.measure(plan, 2))
    assert list(figures) == ["alone", "one of 3 runs", "one of many / alone"]
    assert len(figures["alone"].values) == 2 * len(figures["one of 3 runs"].values)


@pytest.mark.verify
def test_a_run_beside_one_that_floods(plan: driver.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbour, "TIMES", 3)
    monkeypatch.setattr(neighbour, "WARM_S", 0.05)
    once = driver.Plan(plan.at, repeats=1)
    figures = found(neighbour.measure(once, len(flood.KINDS)))
    for what in ("store call", "heartbeat"):
        for kind in (*flood.KINDS, neighbour.ALL):
            assert figures[f"{what} p99, beside {kind}"].values[0] > 0
    judged = [each for each in figures.values() if each.target is not None]
    assert [each.name for each in judged] == ["store call p99, beside all / alone"]
    assert plan.at.process is not None
    assert plan.at.process.code is None


def test_the_model_counts_what_a_node_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "STEADY_S", 0.0)
    said: list[str] = []
    costs = model.measure(
        driver.served, (8, 16), lambda at: driver.Plan(at, repeats=3, seconds=2.0), said.append
    )
    assert said == ["model with 8 nodes", "model with 16 nodes"]
    messages = next(each for each in costs if (each.name, each.unit) == ("messages", "per round"))
    # For each node: Ready to the coordinator; the end of a round and the next round from it.
    # A heartbeat may be among them on a slow machine; test_guard counts exactly.
    assert messages.measured == {8: pytest.approx(24, rel=0.2), 16: pytest.approx(48, rel=0.2)}
    assert 0.7 < messages.exponent < 1.3
    assert {each.name for each in costs} >= {"bytes", "coordinator's CPU"}


def test_the_cpu_time_of_another_process_is_precise() -> None:
    with driver.served() as at:
        assert at.process is not None
        first = at.process.usage()
        ticks = first.cpu_s * 1e4  # of /proc: hundredths of a second
        assert first.cpu_s > 0
        assert ticks != round(ticks)
        assert first.memory_bytes > 2**20


def test_started_processes_have_default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALLYPOINT_LEDGER", "no ledger at all")
    monkeypatch.setenv("RALLYPOINT_PORT", "no port")
    with driver.served() as at:
        assert at.endpoint == f"http://{at.address}"


@pytest.mark.verify
def test_failover_over_a_folder() -> None:
    figures = found(failover.measure(driver.Plan(driver.NOWHERE, repeats=1, processes=2), 3))
    moments = ("the next one serves", "all are attached")
    assert list(figures) == [f"{way.name}: {moment}" for way in failover.WAYS for moment in moments]
    for way in failover.WAYS:
        first, last = (figures[f"{way.name}: {moment}"] for moment in moments)
        assert first.median <= last.median
        assert first.target is None
        assert last.target == (None if way.all_s is None else Target(way.all_s))
    # A coordinator that resigns gives up its lease, so nodes do not wait for that. The bound leaves
    # more than half of the lease's time for a machine that stops.
    assert figures["SIGTERM: all are attached"].median < failover.TTL_S


def test_a_given_folder_is_left_unchanged(tmp_path: Path) -> None:
    kept = tmp_path / "theirs"
    kept.touch()
    with failover.ledger(f"file://{tmp_path}") as place:
        (tmp_path / place.rpartition("/")[2]).mkdir()
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == [kept]


def test_failover_over_a_place_that_is_no_ledger(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(driver.BenchError, match="no coordinator over file://"):
        failover.measure(driver.Plan(driver.NOWHERE, ledger=f"file://{file}"), 3)


@only_long
@pytest.mark.verify
def test_a_failover_prints_only_its_figures(capfd: pytest.CaptureFixture[str]) -> None:
    """Each node warns that it has lost a coordinator: that is what is measured."""
    failover.measure(driver.Plan(driver.NOWHERE, repeats=1), 3)
    assert capfd.readouterr() == ("", "")


def test_a_failed_failover_shows_the_output_of_nodes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    owner_of = failover.owner_of

    def killed_first(
        serving: list[failover.Replica], groups: list[NodeProcesses], nodes: int
    ) -> failover.Replica:
        os.kill(groups[0].process.pid, signal.SIGABRT)
        return owner_of(serving, groups, nodes, "another run")  # that no coordinator has

    monkeypatch.setattr(failover, "owner_of", killed_first)
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    with pytest.raises(driver.BenchError, match="ended with exit code -6") as raised:
        failover.measure(driver.Plan(driver.NOWHERE, repeats=1), 3)
    assert "Fatal Python error: Aborted" in str(raised.value) or "File " in str(raised.value)
    assert capfd.readouterr() == ("", "")
