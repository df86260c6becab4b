"""How many calls a second the round's store answers, and how long a barrier of all nodes takes."""

from __future__ import annotations

from typing import Final

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure
from rallypoint.bench.meet import settings
from rallypoint.bench.processes import clean_environment

CALLS: Final = ("set", "get", "add")
CALLS_IN_ALL: Final = 40_000
CALLS_REPEATS_MAX: Final = 3
BLOCKING_CALLS: Final = 1_000
WINDOW: Final = 8
"""How many calls a node has open at a time, as many threads of a program do."""


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """All kinds of calls, one after another, then barriers."""
    driver.check_descriptors(nodes)
    per_node = max(10, CALLS_IN_ALL // nodes)
    with driver.fleets(plan.processes) as fleets:
        fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )
        fleets.ask("settle")
        calls: dict[str, list[float]] = {what: [] for what in CALLS}
        for _ in range(min(plan.repeats, CALLS_REPEATS_MAX)):
            for what, rates in calls.items():
                rates.append(_calls(fleets, what, nodes, per_node))
        barriers = []
        for number in range(plan.repeats):
            answers = fleets.ask("barrier", name=f"bench/{number}")
            barriers.append(driver.span(answers, "done_s") * 1e3)
        alone = _one_by_one(plan)
        fleets.ask("disconnect")
    about = f"{per_node} calls by each node, {WINDOW} of them open at a time"
    figures = [
        Figure(
            scenario="store",
            name=what,
            nodes=nodes,
            unit="calls/s",
            values=tuple(rates),
            about=about,
        )
        for what, rates in calls.items()
    ]
    figures.append(
        Figure(
            scenario="store",
            name="barrier",
            nodes=nodes,
            unit="ms",
            values=tuple(barriers),
            about="from the first node's call to the last node's answer",
        )
    )
    figures.append(
        Figure(
            scenario="store",
            name="set, one blocking caller",
            nodes=nodes,
            unit="calls/s",
            values=tuple(alone),
            about=f"{BLOCKING_CALLS} calls, one after another, by a program that is the only node "
            "of another run and uses the blocking API, while the nodes are idle",
        )
    )
    return figures


def _one_by_one(plan: driver.Plan) -> list[float]:
    """The calls a second of a program that waits for each answer, one value for each repeat."""
    repeats = min(plan.repeats, CALLS_REPEATS_MAX)
    endpoint, run_id = f"http://{plan.at.address}", plan.run_id()
    token = {"RALLYPOINT_TOKEN": plan.at.token} if plan.at.token else {}
    caller = driver.Process(
        (
            "-m",
            "rallypoint.bench.blocking_caller",
            endpoint,
            run_id,
            str(repeats),
            str(BLOCKING_CALLS),
        ),
        env=clean_environment(**token),
    )
    try:
        return [float(caller.line("a program", "its calls")) for _ in range(repeats)]
    finally:
        caller.end()


def _calls(fleets: driver.Fleets, what: str, nodes: int, per_node: int) -> float:
    """How many calls of one kind were answered in a second."""
    answers = fleets.ask("store", what=what, per_node=per_node, window=WINDOW)
    return nodes * per_node / driver.span(answers, "done_s")
