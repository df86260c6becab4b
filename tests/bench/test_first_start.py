"""First starts with --preload and without: how they take turns, and what is refused."""

from __future__ import annotations

import importlib.util

import pytest

from rallypoint.bench import driver, first_start
from rallypoint.bench.processes import BenchError, cpu_of_tree_s
from tests.kinds import only_long


def test_the_first_of_each_pair_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[bool] = []

    def once(plan: driver.Plan, nodes: int, options: tuple[str, ...]) -> tuple[float, float]:
        started.append(bool(options))
        return (3.0, 6.0) if options else (4.0, 5.0)

    monkeypatch.setattr(first_start, "_once", once)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    figures = first_start.measure(driver.Plan(driver.NOWHERE, repeats=2), 3)
    assert started == [True, False, False, True]
    found = {each.name: each.values for each in figures}
    assert found["named / cold"] == (0.75, 0.75)
    assert found["named / cold, CPU"] == (1.2, 1.2)


def test_without_torch_there_is_nothing_to_preload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match="first-start needs torch"):
        first_start.measure(driver.Plan(driver.NOWHERE), 3)


@pytest.mark.processes
def test_the_cpu_time_of_a_tree_has_that_of_its_children() -> None:
    with driver.served() as at:
        assert at.process is not None
        assert 0 < cpu_of_tree_s(at.process.pid) <= at.process.usage().cpu_s + 1.0


@only_long
@pytest.mark.processes
@pytest.mark.verify
def test_a_first_start_with_modules_that_are_named() -> None:
    pytest.importorskip("torch")
    figures = first_start.measure(driver.Plan(driver.NOWHERE, repeats=1), 3)
    assert all(each.median > 0 for each in figures)
