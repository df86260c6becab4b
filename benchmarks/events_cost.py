"""What events cost: `python benchmarks/events_cost.py [--pairs 20] [--nodes 1000] [--repeats 10]`.

The same meetings with this checkout and with a copy of it whose coordinators record nothing of
what the core does. Both run in turn, as in `compare.py`, whose options and exit code this has.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
if not __package__:  # Run as a file: the checkout has the package `benchmarks`.
    sys.path[0] = str(ROOT)

from benchmarks import compare  # noqa: E402

_NO_EVENTS: Final = """

Observer.before = lambda self, event, now_s: None
Observer.after = lambda self, event, before, effects, now_s: None
"""
"""The last lines of the copy's `coordinator/observer.py`."""


def copy_without_events(folder: Path) -> Path:
    """A checkout in this folder that records no events. Returns the folder."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    with (folder / "src/rallypoint/coordinator/observer.py").open("a", encoding="utf-8") as file:
        file.write(_NO_EVENTS)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """See above."""
    parser = argparse.ArgumentParser(description="Measure what events cost a meeting.")
    parser.add_argument("--pairs", type=int, default=compare.PAIRS, metavar="N")
    parser.add_argument("--nodes", type=int, default=1000, metavar="N")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="within each run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    counts = ("pairs", "nodes", "repeats")
    options = [text for name in counts for text in (f"--{name}", str(getattr(given, name)))]
    if given.json:
        options.append("--json")
    with tempfile.TemporaryDirectory(prefix="rallypoint-") as folder:
        copy = copy_without_events(Path(folder))
        return compare.main([str(copy), "--only", "meet", *options])


if __name__ == "__main__":
    sys.exit(main())
