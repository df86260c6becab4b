"""The benchmarks still run and say what they should; how fast anything was is not checked here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "figures.py"
FAST = ("import", "meet", "regroup", "store", "push")
# What one part of the script makes of the numbers is read by people and by README's author.
FIELDS = {
    "group": str,
    "name": str,
    "timed": str,
    "unit": str,
    "median": float,
    "min": float,
    "max": float,
    "repeats": int,
    "values": list,
    "limited_by": str,
    "details": dict,
    "load_average_before": list,
    "load_average_after": list,
}

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not FIGURES.exists(), reason="the source distribution has no benchmarks"),
]


def run_figures(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(FIGURES), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    done = run_figures("--only", ",".join(FAST), "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert "figures: " in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_group_asked_for_is_there(result: dict[str, Any]) -> None:
    assert result["not_measured"] == []
    assert tuple(dict.fromkeys(figure["group"] for figure in result["figures"])) == FAST
    names = [figure["name"] for figure in result["figures"]]
    assert len(names) == len(set(names))
    assert {"import", "meet_2_processes", "meet_64_threads", "barrier_64"} <= set(names)


def test_the_machine_is_described(result: dict[str, Any]) -> None:
    machine = result["machine"]
    assert machine["cpus"] >= 1
    assert len(machine["load_average_before"]) == len(machine["load_average_after"]) == 3


def test_each_figure_says_what_was_timed_and_keeps_its_values(result: dict[str, Any]) -> None:
    for figure in result["figures"]:
        for name, kind in FIELDS.items():
            assert isinstance(figure[name], kind), (figure["name"], name)
        assert figure["timed"]
        assert figure["values"]
        assert figure["repeats"] == len(figure["values"])
        assert figure["min"] <= figure["median"] <= figure["max"]


def test_a_target_is_judged_by_the_values(result: dict[str, Any]) -> None:
    for figure in result["figures"]:
        target = figure["target"]
        if target is None:
            assert figure["reached"] is None
        else:
            assert figure["reached"] == (figure[target["of"]] <= target["at_most"])


def test_a_table_for_people() -> None:
    done = run_figures("--only", "import", "--repeats", "1", "--markdown")
    assert done.returncode == 0, done.stderr
    head, rule, *rows = done.stdout.strip().splitlines()
    assert head.startswith("| figure | median |")
    assert set(rule) <= set("|-")
    assert [row.split(" | ")[0] for row in rows] == ["| import", "| import_and_first_use"]


def test_a_group_that_is_not_there_is_named() -> None:
    done = run_figures("--only", "meat")
    assert done.returncode == 2
    assert "there is no meat" in done.stderr
