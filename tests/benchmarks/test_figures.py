"""The figures of the documentation can be measured again. No time is judged here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

figures = pytest.importorskip("benchmarks.figures", reason="the source package has no benchmarks")

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "figures.py"
FAST = ("import", "join")
QUOTING = ("README.md", "docs/operations.md", "docs/scale.md")


# -- which commands there are ----------------------------------------------------------------------


def test_each_scenario_with_figures_on_a_page_is_measured() -> None:
    """The last column of a table of figures has the command that measures the row again."""
    quoted = set()
    for page in QUOTING:
        rows = [line for line in (ROOT / page).read_text("utf-8").splitlines() if line[:1] == "|"]
        quoted |= {name for row in rows for name in re.findall(r"`rallypoint bench ([\w-]+)", row)}
    assert len(quoted) > 8
    assert quoted <= set(figures.SCENARIOS)


def test_groups_measured_here_are_no_scenarios() -> None:
    from rallypoint.cli.bench_scenarios import Scenario

    names = {each.value for each in Scenario}
    assert set(figures.SCENARIOS) <= names
    assert set(figures.HERE).isdisjoint(names)


def test_each_command_gives_the_figures_of_its_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def bench(words: tuple[str, ...]) -> list[dict[str, Any]]:
        asked.append(words)
        return [{"name": "warm"}]

    monkeypatch.setattr(figures, "_bench", bench)
    found = figures.measure("host-lost", 2)
    assert asked == [
        ("bench", "host-lost", "--repeats", "2"),
        ("bench", "host-lost", "--at", "etcd", "--repeats", "2"),
    ]
    assert found[1] == {
        "group": "host-lost",
        "command": "rallypoint bench host-lost --at etcd --repeats 2",
        "name": "warm",
    }


def test_a_scenario_that_fails_is_named_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bench(words: tuple[str, ...]) -> list[dict[str, Any]]:
        if words[1] == "cut":
            raise figures.BenchError("there is no coordinator")
        return []

    monkeypatch.setattr(figures, "_bench", bench)
    assert figures.main(["--only", "cut,kill"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["not_measured"] == ["cut: there is no coordinator"]


# -- once, with the quick ones ---------------------------------------------------------------------


def run_figures(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(FIGURES), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    done = run_figures("--only", ",".join(FAST), "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert "figures: rallypoint bench join" in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_each_figure_says_what_was_timed_and_how_to_repeat_it(result: dict[str, Any]) -> None:
    assert result["not_measured"] == []
    assert result["machine"]["cores"] >= 1
    assert tuple(dict.fromkeys(each["group"] for each in result["figures"])) == FAST
    for each in result["figures"]:
        assert each["about"]
        assert each["values"]
        assert min(each["values"]) <= each["median"] <= max(each["values"])
        assert each["group"] in each["command"]


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_a_target_is_judged_by_the_values(result: dict[str, Any]) -> None:
    judged = [each for each in result["figures"] if each["target"] is not None]
    assert len(judged) == 3  # the import, and both meetings
    for each in judged:
        assert each["target"]["of"] == "median"
        assert each["reached"] == (each["median"] <= each["target"]["at_most"])


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_a_table_for_people() -> None:
    done = run_figures("--only", "import", "--repeats", "1", "--markdown")
    assert done.returncode == 0, done.stderr
    head, rule, *rows = done.stdout.strip().splitlines()
    assert head.startswith("| figure | nodes | median |")
    assert set(rule) <= set("|-")
    names = [row.split(" | ")[0] for row in rows]
    assert names == ["| import: import", "| import: import and first use"]


def test_an_unknown_group_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main(["--only", "meat"]) == 2
    assert "there is no meat" in capsys.readouterr().err
