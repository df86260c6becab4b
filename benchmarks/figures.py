"""Measures the figures that the documentation quotes, each with the command that it quotes.

    python benchmarks/figures.py [--only kill,import] [--repeats 3] [--markdown] [--output FILE]

Most of them are figures of `rallypoint bench`, whose scenario defines what is measured and its
target. Only the import time and the cost of a ledger are measured here. Progress goes to stderr;
JSON, or with --markdown a table, to stdout. See README.md beside it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
if not __package__:  # Run as a file: the checkout has the package `benchmarks`.
    sys.path[0] = str(ROOT)

from benchmarks import import_time, ledger_cost  # noqa: E402
from benchmarks.parts import clean_environment  # noqa: E402
from rallypoint.bench import report  # noqa: E402
from rallypoint.bench.figure import Figure  # noqa: E402
from rallypoint.bench.processes import BenchError  # noqa: E402

Shown = dict[str, Any]
"""A figure as it is in the JSON."""

SCENARIOS: Final[dict[str, tuple[int, tuple[str, ...]]]] = {
    "join": (10, ("--nodes 2 --processes 2", "--nodes 64")),
    "recover": (5, ("--ddp",)),
    "drain": (5, ("--ddp",)),
    "first-start": (10, ("",)),
    "hang": (5, ("",)),
    "power-loss": (5, ("",)),
    "kill": (20, ("",)),
    "cut": (3, ("",)),
    "preempted": (3, ("",)),
    "frozen-node": (3, ("",)),
    "frozen-coordinator": (2, ("",)),
    "failover": (3, ("--nodes 8,64", "--nodes 8,64 --at etcd")),
    "host-lost": (3, ("", "--at etcd")),
    "rack": (1, ("", "--at etcd")),
    "ledger-away": (1, ("--seconds 20",)),
    "ledger-reads": (1, ("",)),
    "ledger-writes": (1, ("",)),
    "idle": (1, ("--nodes 128", "--nodes 9000 --progress --seconds 60")),
    "agree": (3, ("--nodes 9000",)),
}
"""Scenarios of `rallypoint bench`: how often each is measured, and the options of its commands."""
HERE: Final[dict[str, tuple[int, Callable[[int], list[Figure]]]]] = {
    "import": (10, import_time.measure),
    "ledger-cost": (3, ledger_cost.measure),
}
"""Figures that no scenario measures: how often, and by which function."""
GROUPS: Final = (*HERE, *SCENARIOS)


def say(text: str) -> None:
    """Print progress to stderr."""
    print(f"figures: {text}", file=sys.stderr, flush=True)


def measure(group: str, repeats: int | None) -> list[Shown]:
    """The figures of one group, each with the command that measures it again. Raises BenchError."""
    if group in HERE:
        usual, function = HERE[group]
        say(group)
        command = f"python benchmarks/figures.py --only {group}"
        figures = [each.as_json() for each in function(repeats or usual)]
        return [{"group": group, "command": command, **each} for each in figures]
    usual, all_options = SCENARIOS[group]
    found: list[Shown] = []
    for options in all_options:
        words = ("bench", group, *shlex.split(options), "--repeats", str(repeats or usual))
        command = shlex.join(("rallypoint", *words))
        say(command)
        found += [{"group": group, "command": command, **each} for each in _bench(words)]
    return found


def _bench(words: Sequence[str]) -> list[Shown]:
    """The figures that this command of `rallypoint` gives. Its own progress is shown."""
    command = [sys.executable, "-m", "rallypoint", *words, "--json"]
    done = subprocess.run(command, env=clean_environment(), stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise BenchError(f"{shlex.join(words)} ended with exit code {done.returncode}")
    figures: list[Shown] = json.loads(done.stdout)["figures"]
    return figures


def markdown(figures: Sequence[Shown]) -> str:
    """A table of figures as they are in the JSON."""
    rows = [
        "| figure | nodes | median | min – max | repeats | target | reached | again by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in figures:
        unit, target, values = each["unit"], each["target"], each["values"]
        cells = (
            f"{each['scenario']}: {each['name']}",
            f"{each['nodes']:,}",
            f"{each['median']:.4g} {unit}",
            f"{min(values):.4g} – {max(values):.4g}",
            str(len(values)),
            f"{target['of']} ≤ {target['at_most']:g} {unit}" if target else "–",
            {True: "yes", False: "**no**", None: "–"}[each["reached"]],
            f"`{each['command']}`",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all was measured, whether or not targets were reached; 1 if not; 2: no such group."""
    options = _options(arguments)
    names = options.only.split(",") if options.only else list(GROUPS)
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        say(f"there is no {', '.join(unknown)}; there is {', '.join(GROUPS)}")
        return 2
    about, figures, problems = report.machine(), [], []
    for name in names:
        try:
            figures += measure(name, options.repeats)
        except BenchError as error:
            problems.append(f"{name}: {error}")
            say(f"could not measure {problems[-1]}")
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
