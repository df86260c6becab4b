"""The copy to compare with records no events."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

events_cost = pytest.importorskip(
    "benchmarks.events_cost", reason="no benchmarks in the source package"
)

pytestmark = [pytest.mark.processes]

LOOK = """
import rallypoint
from rallypoint.coordinator.observer import Observer

print(rallypoint.__file__)
# One without state can record nothing, and would fail.
watcher = object.__new__(Observer)
assert watcher.before(None, 0.0) is None
assert watcher.after(None, None, ["an effect"], 0.0) is None
"""


def test_the_copy_records_nothing(tmp_path: Path) -> None:
    copy = events_cost.copy_without_events(tmp_path)
    environ = os.environ | {"PYTHONPATH": str(copy / "src")}
    done = subprocess.run([sys.executable, "-c", LOOK], env=environ, capture_output=True, text=True)
    assert not done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
