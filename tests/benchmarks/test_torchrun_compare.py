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

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "torchrun_compare.py"

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not SCRIPT.exists(), reason="the source distribution has no benchmarks"),
]
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)


@needs_torch
@pytest.mark.verify
def test_two_nodes_meet_through_either_and_both_are_in_the_json() -> None:
    done = compare("--only", "meet_2", "--repeats", "1", "--json")
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
def test_idle_traffic_needs_a_network_of_its_own_and_the_table_says_so() -> None:
    done = compare("--only", "idle_2", "--no-private-network")
    assert done.returncode == 1
    assert "idle_2: it needs a network of its own (not asked for)" in done.stderr
    described, _, table = done.stdout.partition("\n\n")
    assert "torch: " in described
    assert "host names: as this machine answers them (not asked for)" in described
    assert table.startswith("| figure | rallypoint | c10d, store not shared |")


def test_a_group_that_is_not_there_is_named() -> None:
    done = compare("--only", "meat")
    assert done.returncode == 2
    assert "there is no meat; there is meet_2, " in done.stderr
