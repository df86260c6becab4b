"""How long nodes take to meet: from the first call of any of them to the last answer.

Cold: each connects first. Warm: all are connected, and an earlier round has just ended. Beside it,
in the same run and by the same clock, the floor: bare sockets with two messages a node.
"""

from __future__ import annotations

from typing import Any

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure

COLD_REPEATS_MAX = 5


def settings(nodes: int) -> dict[str, Any]:
    """A run that begins its round once all are there, whatever ended the last one."""
    return {"min_nodes": nodes, "max_nodes": nodes, "max_restarts": None}


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Both meetings of this many nodes, and the floor."""
    driver.check_descriptors(nodes)
    cold_s = [_cold(plan, nodes) for _ in range(min(plan.repeats, COLD_REPEATS_MAX))]
    warm = _warm(plan, nodes)
    floor_cold_s, floor_warm_s = _floor(plan, nodes)

    def figure(name: str, about: str, values: list[float], unit: str = "ms") -> Figure:
        scale = 1e3 if unit == "ms" else 1.0
        return Figure(
            scenario="meet",
            name=name,
            nodes=nodes,
            unit=unit,
            values=tuple(value * scale for value in values),
            about=about,
        )

    figures = [
        figure("warm", "from the first node's call to the last one's answer", warm["span_s"]),
        figure("floor warm", "bare sockets: 120 bytes there and 200 back, a node", floor_warm_s),
        figure("cold", "the same, each node connecting and attaching first", cold_s),
        figure("floor cold", "bare sockets: connecting first", floor_cold_s),
        figure("skew", "warm: from the first node's call to the last one's", warm["skew_s"]),
        figure("nodes' CPU", "warm: of all nodes' processes together", warm["nodes_cpu_s"]),
    ]
    if warm["cpu_s"]:
        figures.append(figure("coordinator's CPU", "warm: a round", warm["cpu_s"]))
    over = figures[0].median / figures[1].median
    figures.append(figure("warm / floor", "the medians' ratio", [over], "x"))
    return figures


def _cold(plan: driver.Plan, nodes: int) -> float:
    with driver.fleets(plan.processes) as fleets:
        told = fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )
        fleets.ask("disconnect")
    return driver.span(told, "formed_s")


def _warm(plan: driver.Plan, nodes: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"span_s": [], "skew_s": [], "cpu_s": [], "nodes_cpu_s": []}
    with driver.fleets(plan.processes) as fleets:
        fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )
        fleets.ask("settle")
        for _ in range(plan.repeats):
            fleets.end_round()
            before_s = plan.cpu_s()
            told = fleets.ask("meet")
            if before_s is not None:
                found["cpu_s"].append((plan.cpu_s() or 0.0) - before_s)
            found["span_s"].append(driver.span(told, "formed_s"))
            found["skew_s"].append(driver.span(told, "called_s"))
            found["nodes_cpu_s"].append(sum(t["cpu_s"] for t in told))
        fleets.ask("disconnect")
    # The kernel counts CPU time in hundredths of a second: a mean, not single rounds.
    if found["cpu_s"]:
        found["cpu_s"] = [sum(found["cpu_s"]) / plan.repeats]
    return found


def _floor(plan: driver.Plan, nodes: int) -> tuple[list[float], list[float]]:
    with driver.floor(nodes) as (_, fleet, told):
        fleet.ask("settle")
        warm = [driver.span([fleet.ask("floor_meet")], "formed_s") for _ in range(plan.repeats)]
        return [driver.span([told], "formed_s")], warm
