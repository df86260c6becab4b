"""Compares this checkout with another one, by scenarios of `rallypoint bench` that run in turn.

    python benchmarks/compare.py OTHER [--pairs 20] [--nodes 128] [--repeats 10] [--only meet]

OTHER is the folder of the other checkout, such as a `git worktree` of an earlier commit. In each
pair both checkouts measure the same, one right after the other, and they take turns in beginning.
So other load on the machine is mostly the same for both. Only the ratio within a pair counts.

A ratio above 1 means that this checkout takes longer. Its 95 % interval is that of Student's t over
the logarithms of the pairs' ratios. Exit code 0: no judged figure is worse, that is, no interval
lies wholly above 1; 1: a judged figure is worse, or could not be measured; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
if not __package__:  # Run as a file: the checkout has the package `benchmarks`.
    sys.path[0] = str(ROOT)

from rallypoint.bench.processes import DEADLINE_S, BenchError  # noqa: E402

PAIRS: Final = 20
JUDGED: Final = ("meet: warm", "store: set, get and add")
"""The figures that must not be worse. The others are only shown."""
_CALLS: Final = ("set", "get", "add")
_SHOWN: Final = {"meet": ("warm", "cold", "coordinator's CPU"), "store": (*_CALLS, "barrier")}
_BENCH_S: Final = 5 * DEADLINE_S
"""How long one scenario of one checkout may take."""


@dataclass(frozen=True)
class Ratio:
    """One figure of this checkout, divided by the other's: the mean ratio and its 95 % interval."""

    name: str
    here: float
    there: float
    unit: str
    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def is_worse(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.low > 1.0


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of at least two ratios, and its 95 % interval."""
    logs = [math.log(each) for each in ratios]
    middle = statistics.fmean(logs)
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    reach = student(len(logs) - 1) * error
    return math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun, 26.7.5; from 3 on within 1 %)."""
    if freedom < 3:
        return (12.706, 4.303)[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def compared(here: Sequence[dict[str, Any]], there: Sequence[dict[str, Any]]) -> list[Ratio]:
    """The ratios of these runs. Each run has its figures by name, with median and unit."""
    found = []
    for name in here[0]:
        if any(name not in each for each in (*here, *there)):
            continue  # One of the checkouts does not have this figure.
        pairs = [_cost(a[name]) / _cost(b[name]) for a, b in zip(here, there, strict=True)]
        values = [
            statistics.median(each[name]["median"] for each in side) for side in (here, there)
        ]
        found.append(Ratio(name, *values, here[0][name]["unit"], *interval(pairs), len(pairs)))
    return found


def _cost(figure: dict[str, Any]) -> float:
    """The figure as a quantity of which less is better."""
    median = float(figure["median"])
    return 1 / median if figure["unit"].endswith("/s") else median


def measure(
    tree: Path, python: str, scenarios: Sequence[str], nodes: int, repeats: int
) -> dict[str, Any]:
    """The figures of one checkout that are compared, by name. Raises BenchError."""
    found: dict[str, Any] = {}
    for scenario in scenarios:
        told = _bench(tree, python, scenario, "--nodes", str(nodes), "--repeats", str(repeats))
        figures = {each["name"]: each for each in told["figures"]}
        found |= {f"{scenario}: {n}": figures[n] for n in _SHOWN[scenario] if n in figures}
    if "store" in scenarios:
        calls = [found[f"store: {name}"]["median"] for name in _CALLS]
        found[JUDGED[1]] = {"median": statistics.geometric_mean(calls), "unit": "calls/s"}
    return found


def _bench(tree: Path, python: str, *arguments: str) -> dict[str, Any]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RALLYPOINT_")}
    environment = kept | {"PYTHONPATH": str(tree / "src")}
    command = [python, "-m", "rallypoint", "bench", *arguments, "--json"]
    try:
        done = subprocess.run(
            command, env=environment, cwd=tree, capture_output=True, timeout=_BENCH_S
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{tree}: {arguments[0]} takes more than {_BENCH_S:g} s") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace")[-1_000:].strip()
        raise BenchError(f"{tree}: {arguments[0]} ended with {done.returncode}: {said}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def say(text: str) -> None:
    """Print progress to stderr."""
    print(f"compare: {text}", file=sys.stderr, flush=True)


def shown(ratios: Sequence[Ratio]) -> str:
    """A table for people."""
    width = max(len(each.name) for each in ratios)
    lines = [f"{'figure':{width}}  {'this':>10}  {'other':>10}  {'ratio':>6}  95 % interval"]
    for each in ratios:
        span = f"{each.low:.3f} to {each.high:.3f}"
        verdict = "" if each.name not in JUDGED else "  worse" if each.is_worse else "  no worse"
        values = f"{each.here:10,.2f}  {each.there:10,.2f}  {each.ratio:6.3f}"
        lines.append(f"{each.name:{width}}  {values}  {span}  {each.unit}{verdict}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See above."""
    options = _options(arguments)
    other = Path(options.other).resolve()
    if not (other / "src" / "rallypoint" / "bench").is_dir():
        print(f"error: {other} is no checkout of Rallypoint that has a bench", file=sys.stderr)
        return 2
    scenarios = [options.only] if options.only else list(_SHOWN)
    here: list[dict[str, Any]] = []
    there: list[dict[str, Any]] = []
    try:
        for pair in range(options.pairs):
            sides = [(ROOT, sys.executable, here), (other, options.other_python, there)]
            for tree, python, found in sides if pair % 2 else reversed(sides):
                found.append(measure(tree, python, scenarios, options.nodes, options.repeats))
            say(f"pair {pair + 1} of {options.pairs}")
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ratios = compared(here, there)
    if options.json:
        made = [vars(each) | {"is_worse": each.is_worse} for each in ratios]
        print(json.dumps({"nodes": options.nodes, "judged": JUDGED, "ratios": made}, indent=2))
    else:
        print(shown(ratios))
    return int(any(each.is_worse for each in ratios if each.name in JUDGED))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare this checkout with another one.")
    parser.add_argument("other", metavar="OTHER", help="the folder of the other checkout")
    parser.add_argument("--pairs", type=_at_least_2, default=PAIRS, metavar="N")
    parser.add_argument("--nodes", type=_at_least_2, default=128, metavar="N")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="within each run")
    parser.add_argument("--only", choices=list(_SHOWN), help="one scenario (default: both)")
    parser.add_argument(
        "--other-python",
        default=sys.executable,
        metavar="PATH",
        help="the interpreter for the other checkout, if its packages are not the same",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def _at_least_2(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError("at least 2")
    return number


if __name__ == "__main__":
    sys.exit(main())
