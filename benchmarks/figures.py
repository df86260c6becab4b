"""Measures the figures that the documentation quotes.

    python benchmarks/figures.py [--only meet,kill] [--repeats 3] [--markdown] [--output FILE]

Progress goes to stderr, JSON (or with --markdown a table) to stdout. See README.md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
if not __package__:  # run as a file: what lies beside it is the package `benchmarks`
    sys.path[0] = str(ROOT)

from benchmarks import failover, failures, idle, in_process, meeting, node_loss  # noqa: E402
from benchmarks.figure import Group, load_average, markdown  # noqa: E402
from benchmarks.processes import NotMeasuredError  # noqa: E402
from rallypoint import __version__  # noqa: E402

GROUPS: Final = {
    group.name: group
    for each in (meeting, failures, node_loss, idle, in_process, failover)
    for group in each.GROUPS
}


def say(text: str) -> None:
    """Progress, for a person who waits."""
    print(f"figures: {text}", file=sys.stderr, flush=True)


def measure(groups: Sequence[Group], repeats: int | None) -> tuple[list[dict[str, Any]], list[str]]:
    """All figures of these groups, and what could not be measured."""
    figures: list[dict[str, Any]] = []
    problems: list[str] = []
    for group in groups:
        before = load_average()
        try:
            measured = group.measure(repeats or group.repeats, say)
        except NotMeasuredError as error:
            problems.append(f"{group.name}: {error}")
            say(f"could not measure {problems[-1]}")
            continue
        for figure in measured:
            loads = {"load_average_before": before, "load_average_after": load_average()}
            figures.append({"group": group.name, **figure.as_json(), **loads})
    return figures, problems


def machine() -> dict[str, Any]:
    """On what it was measured."""
    return {
        "rallypoint": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)),
        "load_average_before": load_average(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all was measured, whether or not targets were reached; else 1."""
    options = _options(arguments)
    names = options.only.split(",") if options.only else list(GROUPS)
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        say(f"there is no {', '.join(unknown)}; there is {', '.join(GROUPS)}")
        return 2
    about = machine()
    figures, problems = measure([GROUPS[name] for name in names], options.repeats)
    about["load_average_after"] = load_average()
    text = json.dumps({"machine": about, "figures": figures, "not_measured": problems}, indent=2)
    if options.output:
        Path(options.output).write_text(text + "\n", encoding="utf-8")
    print(markdown(figures) if options.markdown else text)
    return 1 if problems else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the figures that README quotes.")
    parser.add_argument("--only", metavar="A,B", help=f"of: {', '.join(GROUPS)}")
    parser.add_argument("--repeats", type=int, metavar="N", help="instead of each group's own")
    parser.add_argument("--markdown", action="store_true", help="print a table, no JSON")
    parser.add_argument("--output", metavar="FILE", help="write the JSON there as well")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
