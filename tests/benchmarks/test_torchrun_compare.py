"""The comparison with torch runs and prints its results. No time is judged here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rallypoint.bench.figure import Column
from rallypoint.bench.processes import BenchError

compare = pytest.importorskip(
    "benchmarks.torchrun_compare", reason="no benchmarks in the source package"
)

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "torchrun_compare.py"

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(300),
]
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)


@needs_torch
@pytest.mark.verify
def test_two_nodes_meet_through_either_and_both_are_in_the_json() -> None:
    done = run_script("--only", "meet_2", "--repeats", "1", "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["not_measured"] == []
    assert {"rallypoint", "torch", "host_names", "network"} <= result["machine"].keys()
    (row,) = result["figures"]
    assert (row["group"], row["name"], row["unit"]) == ("meet_2", "met", "s")
    assert row["timed"]
    medians = {name: found["median"] for name, found in row["variants"].items()}
    assert medians.keys() == {"rallypoint", "c10d, store not shared"}
    assert all(median > 0 for median in medians.values())
    ratio = medians["c10d, store not shared"] / medians["rallypoint"]
    assert row["c10d_over_rallypoint"] == pytest.approx(ratio, rel=0.01)
    assert row["reached"] == (row["c10d_over_rallypoint"] >= row["expected"]["times_better"])


@needs_torch
def test_idle_traffic_needs_a_private_network_and_the_table_says_so() -> None:
    done = run_script("--only", "idle_2", "--no-private-network")
    assert done.returncode == 1
    assert "idle_2: it needs a private network (not asked for)" in done.stderr
    described, _, table = done.stdout.partition("\n\n")
    assert "torch: " in described
    assert "host names: as this machine answers them (not asked for)" in described
    assert table.startswith("| figure | rallypoint | c10d, store not shared |")


def measure_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: Any, error: Any
) -> tuple[int, list[str]]:
    """Measure one group twice, whose sample raises `error` for the variant `fails`."""

    def sample(variant: Any) -> dict[str, float]:
        if variant is fails:
            raise error
        return {"met": 1.0}

    columns = (Column("met", "s", "a test"),)
    group = compare.Group("some", 2, columns, sample, compare.ALL)
    monkeypatch.setattr(compare, "GROUPS", {"some": group})
    code = compare.main(["--no-private-network", "--json"])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    not_measured: list[str] = result["not_measured"]
    return code, not_measured


@needs_torch
def test_a_figure_that_was_not_measured_sets_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = BenchError("2 of 2 did not meet: no route")
    code, not_measured = measure_one(monkeypatch, capsys, compare.RALLYPOINT, error)
    assert code == 1
    assert not_measured == [
        "some 1 of 2, rallypoint: 2 of 2 did not meet: no route",
        "some 2 of 2, rallypoint: 2 of 2 did not meet: no route",
    ]


@needs_torch
def test_a_job_that_ends_is_a_result_with_torchs_defaults_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = compare.JobFailedError("the job ended, all agents after 3 s\nlast words")
    failed = (compare.C10D_DEFAULT, error)
    assert measure_one(monkeypatch, capsys, *failed) == (0, [])
    code, not_measured = measure_one(monkeypatch, capsys, compare.C10D, error)
    assert (code, len(not_measured)) == (1, 2)


def test_an_unknown_group_is_named() -> None:
    done = run_script("--only", "meat")
    assert done.returncode == 2
    assert "there is no meat; there is meet_2, " in done.stderr
