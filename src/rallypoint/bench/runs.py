"""Whether a coordinator with many runs is slower for one of them.

The same run meets again and again: first alone, then while the other runs are in a round and idle,
and then alone once more. So other load on the machine affects both figures.
"""

from __future__ import annotations

from typing import Final

from rallypoint.bench import driver, meet
from rallypoint.bench.figure import Figure

ROUNDS_PER_REPEAT: Final = 5
"""How many rounds: small ones are short, so only the median of many of them is steady."""


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Rounds of one run of this many nodes, without and with `plan.runs - 1` others beside it."""
    driver.check_descriptors(nodes * plan.runs)
    with driver.fleets(1) as own, driver.fleets(plan.processes) as others:
        own.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=meet.settings(nodes), ready=True
        )
        own.ask("settle")
        alone = _rounds(plan, own)
        for index in range(plan.runs - 1):
            _one_more(plan, others.each[index % plan.processes], nodes)
        others.ask("settle")
        beside = _rounds(plan, own)
        others.ask("disconnect")
        alone += _rounds(plan, own)
        own.ask("disconnect")

    def figure(name: str, unit: str, about: str, values: list[float]) -> Figure:
        return Figure(
            scenario="runs", name=name, nodes=nodes, unit=unit, values=tuple(values), about=about
        )

    about = "from the first node's call to the last node's answer, all connected"
    figures = [
        figure("alone", "ms", about, alone),
        figure(f"one of {plan.runs} runs", "ms", about, beside),
    ]
    over = figures[1].median / figures[0].median
    return [*figures, figure("one of many / alone", "x", "the medians' ratio", [over])]


def _one_more(plan: driver.Plan, fleet: driver.Fleet, nodes: int) -> None:
    fleet.ask(
        "connect",
        host=plan.at.address.host,
        port=plan.at.address.port,
        run_id=plan.run_id(),
        first=0,
        nodes=nodes,
        settings=meet.settings(nodes),
        token=plan.at.token,
        ready=True,
    )


def _rounds(plan: driver.Plan, fleets: driver.Fleets) -> list[float]:
    """The length of each of many warm meetings, in milliseconds."""
    found = meet.warm_rounds(plan, fleets, plan.repeats * ROUNDS_PER_REPEAT)
    return [span_s * 1e3 for span_s in found["span_s"]]
