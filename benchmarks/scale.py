"""Measures how many nodes one coordinator can serve, and writes it into docs/scale.md.

    python benchmarks/scale.py [--nodes 128,512,2048] [--repeats 10] [--print]

It replaces the tables between the two marks of that file and nothing else. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
if not __package__:  # Run as a file: the checkout has the package `benchmarks`.
    sys.path[0] = str(ROOT)

from benchmarks import doc_tables, wait_idle  # noqa: E402
from rallypoint.bench import (  # noqa: E402
    driver,
    idle,
    meet,
    model,
    recover,
    regroup,
    runs,
    store,
)
from rallypoint.bench import report as bench_report  # noqa: E402
from rallypoint.bench.figure import Figure  # noqa: E402

PAGE: Final = ROOT / "docs" / "scale.md"
WRITER: Final = "benchmarks/scale.py"
SIZES: Final = (128, 512, 1_024, 4_096, 9_000)
LARGE_RUN: Final = 1_000
"""So many nodes regroup and use the store, as well as the largest size."""
REGROUP_REPEATS_MAX: Final = 3
RUNS: Final = 200
NODES_OF_A_RUN: Final = 16
IDLE_S: Final = 10.0


def say(text: str) -> None:
    """Print progress to stderr."""
    print(f"scale: {text}", file=sys.stderr, flush=True)


def tables(sizes: Sequence[int], repeats: int, many: int, seconds: float = IDLE_S) -> str:
    """The text between the marks."""
    about = bench_report.machine()
    served: list[Figure] = []
    driver.check_descriptors(max(*sizes, many * NODES_OF_A_RUN))
    others = wait_idle.wait()
    for nodes in sizes:
        say(f"meet and idle with {nodes:,} nodes")
        with driver.served() as at:
            served += meet.measure(driver.Plan(at, repeats=repeats), nodes)
        with driver.served() as at:
            served += idle.measure(driver.Plan(at, seconds=seconds), nodes)
    costs = model.measure(
        driver.served,
        sizes,
        lambda at: driver.Plan(at, repeats=repeats, seconds=seconds),
        say,
    )
    large = sorted({min(LARGE_RUN, max(sizes)), max(sizes)})
    changed: list[Figure] = []
    for nodes in large:
        say(f"regroup and store with {nodes:,} nodes")
        with driver.served() as at:
            plan = driver.Plan(at, repeats=min(repeats, REGROUP_REPEATS_MAX))
            changed += regroup.measure(plan, nodes)
        with driver.served() as at:
            changed += store.measure(driver.Plan(at, repeats=repeats), nodes)
    say(f"{many} runs of {NODES_OF_A_RUN} nodes")
    with driver.served() as at:
        beside = runs.measure(driver.Plan(at, repeats=repeats, runs=many), NODES_OF_A_RUN)
    say("recover")
    with driver.served() as at:
        recovered = recover.measure(driver.Plan(at, repeats=repeats), 3)
    where = f"{about['cores']} cores, {about['system']}, Python {about['python']}"
    return "\n\n".join(
        (
            f"Measured with rallypoint {about['rallypoint']} on {where}, {about['event_loop']}; "
            f"{_quietness(others)}. Medians.",
            _over_sizes(served, sizes),
            "A node is killed, leaves, arrives or is frozen; calls of the store; a barrier of all:",
            _over_sizes(changed, large),
            f"One of {many} runs of {NODES_OF_A_RUN} nodes, and three agents of which one is "
            "killed:",
            doc_tables.table(
                ["figure", "median", "unit"],
                [[e.name, bench_report.rounded(e.median), e.unit] for e in [*beside, *recovered]],
            ),
            "The cost model. Columns with *predicted* were not measured:",
            doc_tables.table(*model.rows(costs)),
            *(f"{text[0].upper()}{text[1:]}." for text in model.remarks(costs)),
        )
    )


def _quietness(others: int | None) -> str:
    if others is None:
        return "what else ran could not be read"
    if others > wait_idle.RUNNABLE_MAX:
        busy = f"{others} other processes were ready to run before"
        return f"**{busy}: on a quiet machine it is faster**"
    return "nothing else ran before"


def _over_sizes(figures: Sequence[Figure], sizes: Sequence[int]) -> str:
    found = {(e.scenario, e.name, e.unit, e.nodes): e.median for e in figures}
    rows = []
    for scenario, name, unit in dict.fromkeys((e.scenario, e.name, e.unit) for e in figures):
        values = (found[scenario, name, unit, n] for n in sizes)
        rows.append([f"{scenario}: {name}", unit, *map(bench_report.rounded, values)])
    return doc_tables.table(["figure", "unit", *(f"{n:,}" for n in sizes)], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all was measured."""
    parser = argparse.ArgumentParser(
        description="Measure how many nodes one coordinator can serve."
    )
    default = ",".join(map(str, SIZES))
    parser.add_argument("--nodes", metavar="N,N...", default=default, help=f"default: {default}")
    parser.add_argument("--repeats", type=int, metavar="N", default=10)
    parser.add_argument("--runs", type=int, metavar="N", default=RUNS)
    parser.add_argument("--print", action="store_true", help="to stdout, not into the page")
    options = parser.parse_args(arguments)
    try:
        text = tables([int(n) for n in options.nodes.split(",")], options.repeats, options.runs)
    except driver.BenchError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 1
    if options.print:
        print(text)
    else:
        PAGE.write_text(doc_tables.put(text, PAGE.read_text("utf-8"), WRITER), "utf-8")
        say(f"written into {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
