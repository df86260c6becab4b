"""How long nodes take to meet: from the first call of any of them to the last answer.

Cold: each connects first. Warm: all are connected, and an earlier round has just ended. Beside it,
by the same clock and in turn with the warm ones, so that what else the machine does slows both
alike, the floor: bare sockets with two messages a node.
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
        figure("floor warm", "bare sockets: 120 bytes there and 200 back, a node", warm["floor_s"]),
        figure("cold", "the same, each node connecting and attaching first", cold_s),
        figure("floor cold", "bare sockets: connecting first", warm["floor_cold_s"]),
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
    names = ("span_s", "skew_s", "cpu_s", "nodes_cpu_s", "floor_s", "floor_cold_s")
    found: dict[str, list[float]] = {name: [] for name in names}
    with driver.floor(nodes) as (_, bare, bare_told), driver.fleets(plan.processes) as fleets:
        found["floor_cold_s"].append(driver.span([bare_told], "formed_s"))
        fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )
        fleets.ask("settle")
        bare.ask("settle")
        for _ in range(plan.repeats):
            fleets.end_round()
            before_s = plan.cpu_s()
            told = fleets.ask("meet")
            if before_s is not None:
                found["cpu_s"].append((plan.cpu_s() or 0.0) - before_s)
            found["span_s"].append(driver.span(told, "formed_s"))
            found["skew_s"].append(driver.span(told, "called_s"))
            found["nodes_cpu_s"].append(sum(t["cpu_s"] for t in told))
            found["floor_s"].append(driver.span([bare.ask("floor_meet")], "formed_s"))
        fleets.ask("disconnect")
    return found
