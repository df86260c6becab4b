"""Compares this checkout with another one, by scenarios of `rallypoint bench` that run in turn.

    python benchmarks/compare.py OTHER [--pairs 20] [--nodes 128] [--repeats 10] [--only meet]
    python benchmarks/compare.py OTHER --only idle --nodes 1000 [--seconds 10]

OTHER is the folder of the other checkout, such as a `git worktree` of an earlier commit. In each
pair both checkouts measure the same, one right after the other, and they take turns in beginning.
So other load on the machine is mostly the same for both. Only the ratio within a pair counts.

A ratio above 1 means that this checkout costs more. Its 95 % interval is that of Student's t over
the logarithms of the pairs' ratios. A figure that is 0 in one checkout only has no ratio. Exit
code 0: no judged figure is worse, that is, no interval lies wholly above 1; 1: a judged figure is
worse, has no ratio, or could not be measured; 2: wrong usage.
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
JUDGED: Final = (
    "meet: warm",
    "store: set, get and add",
    "idle: CPU",
    "idle: messages",
    "idle: bytes",
)
"""The figures that must not be worse. The others are only shown."""
ROUNDING: Final = 1e-6
"""A ratio that differs from 1 by less is 1: two counts that are equal, each divided by a time."""
_CALLS: Final = ("set", "get", "add")
_SHOWN: Final = {
    "meet": ("warm", "cold", "coordinator's CPU"),
    "store": (*_CALLS, "barrier"),
    "idle": ("messages", "bytes", "CPU", "memory", "memory, KiB per node"),
}
_BENCH_S: Final = 5 * DEADLINE_S
"""How long one scenario of one checkout may take."""


@dataclass(frozen=True)
class Ratio:
    """One figure of this checkout, divided by the other's: the mean ratio and its 95 % interval.

    `ratio`, `low` and `high` are None if the figures of some pair have no ratio.
    """

    name: str
    here: float
    there: float
    unit: str
    ratio: float | None
    low: float | None
    high: float | None
    pairs: int

    @property
    def is_worse(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.low is not None and self.low > 1.0 + ROUNDING

    @property
    def is_kept(self) -> bool:
        """Whether the interval exists and reaches down to 1."""
        return self.low is not None and not self.is_worse


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of at least two ratios, and its 95 % interval. All ratios are above 0.

    The interval of equal ratios has no width.
    """
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
    return sum(term / math.pow(freedom, power) for power, term in enumerate(terms))


def compared(here: Sequence[dict[str, Any]], there: Sequence[dict[str, Any]]) -> list[Ratio]:
    """The ratios of these runs. Each run has its figures by name, with median and unit."""
    found = []
    for name in here[0]:
        if any(name not in each for each in (*here, *there)):
            continue  # One of the checkouts does not have this figure.
        ratios = [_ratio(a[name], b[name]) for a, b in zip(here, there, strict=True)]
        known = [each for each in ratios if each is not None]
        ours, theirs = (
            statistics.median(each[name]["median"] for each in side) for side in (here, there)
        )
        middle, low, high = interval(known) if len(known) == len(ratios) else (None, None, None)
        unit = here[0][name]["unit"]
        found.append(Ratio(name, ours, theirs, unit, middle, low, high, len(ratios)))
    return found


def _ratio(here: dict[str, Any], there: dict[str, Any]) -> float | None:
    """How much more the first figure costs; None if only one is 0, or one is below 0."""
    ours, theirs = float(here["median"]), float(there["median"])
    if ours == theirs:
        return 1.0  # Both may be 0.
    if ours <= 0 or theirs <= 0:
        return None
    # More calls in a second are better; of everything else, less is better.
    return theirs / ours if here["unit"].endswith("/s") else ours / theirs


def measure(
    tree: Path, python: str, scenarios: Sequence[str], nodes: int, repeats: int, seconds: float
) -> dict[str, Any]:
    """The figures of one checkout that are compared, by name. Raises BenchError."""
    found: dict[str, Any] = {}
    for scenario in scenarios:
        length = ("--seconds", f"{seconds:g}") if scenario == "idle" else ()
        options = ("--nodes", str(nodes), "--repeats", str(repeats), *length)
        figures = _by_name(_bench(tree, python, scenario, *options)["figures"])
        found |= {f"{scenario}: {n}": figures[n] for n in _SHOWN[scenario] if n in figures}
    if "store" in scenarios:
        calls = [found[f"store: {name}"]["median"] for name in _CALLS]
        found[JUDGED[1]] = {"median": statistics.geometric_mean(calls), "unit": "calls/s"}
    return found


def _by_name(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures by name. A name that occurs again, in another unit, gets the unit."""
    named: dict[str, Any] = {}
    for each in figures:
        name = each["name"]
        named[f"{name}, {each['unit']}" if name in named else name] = each
    return named


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
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def say(text: str) -> None:
    """Print progress to stderr."""
    print(f"compare: {text}", file=sys.stderr, flush=True)


def shown(ratios: Sequence[Ratio]) -> str:
    """A table for people."""
    width = max(len(each.name) for each in ratios)
    lines = [f"{'figure':{width}}  {'this':>10}  {'other':>10}  {'ratio':>6}  95 % interval"]
    for each in ratios:
        if each.ratio is None:
            spread = f"{'none':>6}  {'':14}"
        else:
            spread = f"{each.ratio:6.3f}  {each.low:.3f} to {each.high:.3f}"
        values = f"{each.here:10,.2f}  {each.there:10,.2f}"
        lines.append(f"{each.name:{width}}  {values}  {spread}  {each.unit}{_verdict(each)}")
    return "\n".join(lines)


def _verdict(ratio: Ratio) -> str:
    if ratio.name not in JUDGED:
        return ""
    return "  worse" if ratio.is_worse else "  no worse" if ratio.is_kept else "  not comparable"


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
                found.append(
                    measure(
                        tree, python, scenarios, options.nodes, options.repeats, options.seconds
                    )
                )
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
    kept = {each.name for each in ratios if each.is_kept}
    return int(any(name not in kept for name in JUDGED if name.split(":")[0] in scenarios))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare this checkout with another one.")
    parser.add_argument("other", metavar="OTHER", help="the folder of the other checkout")
    parser.add_argument("--pairs", type=_at_least_2, default=PAIRS, metavar="N")
    parser.add_argument("--nodes", type=_at_least_2, default=128, metavar="N")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="within each run")
    parser.add_argument("--only", choices=list(_SHOWN), help="one scenario (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="how long idle is measured"
    )
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
