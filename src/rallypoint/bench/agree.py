"""What it costs that all nodes agree on the step at which one of them leaves (`should_yield`).

The nodes are virtual. All have asked whether to stop before; then one drains. Messages are counted
at the nodes, in both directions, without heartbeats.
"""

from __future__ import annotations

from typing import Final

from rallypoint.bench import driver
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.meet import settings

MESSAGES: Final = 3.0
"""Who drains, with the question for a promise; the promise; and the step."""
PASSED: Final = 1_000
REPEATS_MAX: Final = 5
COLUMNS: Final = (
    Column(
        "messages of a round",
        "per node",
        "each node says once in a round that its workers ask at each step whether to stop",
    ),
    Column(
        "messages of a drain",
        "per node",
        "both directions, the most of any node that stays, from the notice of one node until all "
        "know the step",
        Target(MESSAGES, worst=True),
    ),
    Column(
        "messages of the node that drains",
        "per node",
        "the same, with its announcement",
        Target(MESSAGES + 1.0, worst=True),
    ),
    Column("agreed", "ms", "from the notice of one node until the last node knows the step"),
)


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Drain one of this many, each time in a new run."""
    driver.check_descriptors(nodes)
    repeats = min(plan.repeats, REPEATS_MAX)
    return figures_of("agree", nodes, COLUMNS, [_once(plan, nodes) for _ in range(repeats)])


def _once(plan: driver.Plan, nodes: int) -> tuple[float, float, float, float]:
    with driver.fleets(plan.processes) as fleets:
        fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )
        before = fleets.ask("take_part", step=PASSED)
        for index, fleet in enumerate(fleets.each):
            fleet.send("drain", is_here=index == 0)
        after = [fleet.receive() for fleet in fleets.each]
        fleets.ask("disconnect")
    steps = {step for each in after for step in each["steps"]}
    if steps != {PASSED + 1}:
        raise driver.BenchError(f"the nodes were told other steps than {PASSED + 1}: {steps}")
    taking_part = [count for each in before for count in each["messages"]]
    in_all = [count for each in after for count in each["messages"]]
    drained, *others = (b - a for a, b in zip(taking_part, in_all, strict=True))
    return max(taking_part), max(others), drained, 1e3 * driver.span(after, "decided_s")
