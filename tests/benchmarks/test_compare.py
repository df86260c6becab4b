"""Two checkouts are compared by the ratios within pairs of runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

compare = pytest.importorskip("benchmarks.compare", reason="no benchmarks in the source package")


def run(**figures: tuple[float, str]) -> dict[str, Any]:
    return {name: {"median": median, "unit": unit} for name, (median, unit) in figures.items()}


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (19, 2.093)]
)
def test_the_quantiles_of_students_t(freedom: int, quantile: float) -> None:
    assert compare.student(freedom) == pytest.approx(quantile, rel=0.01)


def test_the_interval_is_that_of_the_logarithms() -> None:
    # Mean 0 and deviation ln 2 of three logarithms: 4.303 * ln 2 / sqrt 3 to both sides.
    middle, low, high = compare.interval([0.5, 1.0, 2.0])
    assert middle == pytest.approx(1.0)
    assert math.log(high) == pytest.approx(4.303 * math.log(2) / math.sqrt(3))
    assert low == pytest.approx(1 / high)


def test_a_slower_machine_changes_no_ratio() -> None:
    here = [run(t=(slow * 11.0, "ms")) for slow in (1, 2, 5)]
    there = [run(t=(slow * 10.0, "ms")) for slow in (1, 2, 5)]
    [ratio] = compare.compared(here, there)
    assert (ratio.ratio, ratio.low, ratio.high) == (pytest.approx(1.1),) * 3
    assert ratio.is_worse
    assert (ratio.here, ratio.there, ratio.pairs) == (22.0, 20.0, 3)


def test_fewer_calls_a_second_are_worse() -> None:
    here = [run(t=(rate, "calls/s")) for rate in (50.0, 51.0)]
    there = [run(t=(rate, "calls/s")) for rate in (100.0, 102.0)]
    [ratio] = compare.compared(here, there)
    assert ratio.ratio == pytest.approx(2.0)


def test_equal_figures_have_the_ratio_1_even_if_they_are_0() -> None:
    runs = [run(messages=(1.2, "per node and s"), none=(0.0, "per node and s"))] * 3
    for ratio in compare.compared(runs, runs):
        assert (ratio.ratio, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
        assert ratio.is_kept


def test_rounding_makes_no_figure_worse() -> None:
    here = [run(messages=(1.2000000002, "per node and s"))] * 3
    there = [run(messages=(1.2, "per node and s"))] * 3
    assert not compare.compared(here, there)[0].is_worse


@pytest.mark.parametrize(("ours", "theirs"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_a_figure_that_is_0_in_one_checkout_has_no_ratio(ours: float, theirs: float) -> None:
    here = [run(t=(ours, "%")), run(t=(1.0, "%"))]
    there = [run(t=(theirs, "%")), run(t=(1.0, "%"))]
    [ratio] = compare.compared(here, there)
    assert (ratio.ratio, ratio.low, ratio.high) == (None, None, None)
    assert not ratio.is_worse
    assert not ratio.is_kept
    assert "none" in compare.shown([ratio])


@pytest.mark.parametrize(("ours", "code"), [(1.0, 0), (2.0, 1), (0.0, 1), (None, 1)])
def test_the_exit_code_says_whether_every_judged_figure_is_no_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: float | None, code: int
) -> None:
    (tmp_path / "src" / "rallypoint" / "bench").mkdir(parents=True)

    def bench(tree: Path, python: str, scenario: str, *options: str) -> dict[str, Any]:
        assert (scenario, options[-2:]) == ("idle", ("--seconds", "3"))
        cpu = ours if tree == compare.ROOT else 1.0
        medians = {"messages": 1.2, "bytes": 30.0, "CPU": cpu}
        figures = [{"name": n, "median": m, "unit": "%"} for n, m in medians.items()]
        return {"figures": [each for each in figures if each["median"] is not None]}

    monkeypatch.setattr(compare, "_bench", bench)
    options = ["--only", "idle", "--seconds", "3", "--pairs", "3"]
    assert compare.main([str(tmp_path), *options]) == code


def test_an_interval_with_1_in_it_is_no_worse_and_a_missing_figure_is_left_out() -> None:
    here = [run(t=(value, "ms"), new=(1.0, "ms")) for value in (12.0, 8.0)]
    there = [run(t=(10.0, "ms")) for _ in range(2)]
    [ratio] = compare.compared(here, there)
    assert ratio.name == "t"
    assert ratio.low < 1.0 < ratio.high
    assert not ratio.is_worse


def test_a_name_with_two_units_gives_two_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = [
        {"name": "memory", "median": 60.0, "unit": "MiB"},
        {"name": "memory", "median": 20.0, "unit": "KiB per node"},
    ]
    monkeypatch.setattr(compare, "_bench", lambda *_: {"figures": memory})
    found = compare.measure(Path(), "", ("idle",), 4, 1, 10.0)
    assert {name: each["median"] for name, each in found.items()} == {
        "idle: memory": 60.0,
        "idle: memory, KiB per node": 20.0,
    }


def test_a_folder_that_is_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(tmp_path)]) == 2
    assert "is no checkout of Rallypoint" in capsys.readouterr().err


def test_every_scenario_has_its_judged_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def bench(tree: Path, python: str, scenario: str, *options: str) -> dict[str, Any]:
        names = (*compare._SHOWN[scenario], "floor warm")
        figures = [{"name": n, "median": 2.0, "unit": "ms"} for n in names]
        return {"figures": figures}

    monkeypatch.setattr(compare, "_bench", bench)
    found = compare.measure(Path(), "", ("meet", "store", "idle"), 4, 1, 10.0)
    assert set(compare.JUDGED) <= set(found)
    assert found["store: set, get and add"]["median"] == pytest.approx(2.0)
    assert "meet: floor warm" not in found


@pytest.mark.processes
@pytest.mark.verify
def test_this_checkout_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pairs", "2", "--nodes", "4", "--repeats", "1", "--only", "meet", "--json"]
    # Whether either is "worse" is chance, with two pairs of tiny runs.
    assert compare.main([str(compare.ROOT), *options]) in (0, 1)
    result = json.loads(capsys.readouterr().out)
    assert {each["name"] for each in result["ratios"]} == {
        "meet: warm",
        "meet: cold",
        "meet: coordinator's CPU",
    }
    assert all(each["pairs"] == 2 and each["ratio"] > 0 for each in result["ratios"])
