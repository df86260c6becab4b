"""docs/journey.md says how far a reader has to jump, and tools/journey.py counts it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEEWAY = 0.5
"""How far a count may be from the page's: another Python, or a timer in each run, changes some."""


def rows(text: str, heading: str) -> dict[str, list[int]]:
    """The rows of the table with this heading: the numbers of each, by its first cell."""
    table = text.partition(f"| {heading} |")[2].partition("\n\n")[0]
    found = re.findall(r"^\| (.*?) \| ([\d |]+) \|$", table, re.MULTILINE)
    return {name: [int(each) for each in numbers.split("|")] for name, numbers in found}


@pytest.mark.processes
def test_the_page_of_the_journeys_has_about_the_counts_of_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.journey"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counted = rows(done.stdout, "all calls")
    page = rows((ROOT / "docs" / "journey.md").read_text(encoding="utf-8"), "all calls")
    assert len(counted) == 3
    assert list(counted) == list(page)
    for name, (files, returns) in counted.items():
        _, files_now, _, returns_now = page[name]
        assert files == pytest.approx(files_now, rel=LEEWAY), f"{name}: files"
        assert returns == pytest.approx(returns_now, rel=LEEWAY), f"{name}: returns"
