"""How long nodes take to meet: from the first call of any of them to the last answer.

Cold: each node connects first. Warm: all nodes are connected, and their last round has just ended.
The *floor* is the time of bare sockets for two messages for each node, by the same clock. It is
measured before and after the nodes, and never at the same time, because their heartbeats would slow
it down.
"""

from __future__ import annotations

from typing import Any

from rallypoint.bench import driver
from rallypoint.bench.counting import loop_name
from rallypoint.bench.figure import Figure

COLD_REPEATS_MAX = 5


def settings(nodes: int) -> dict[str, Any]:
    """A run whose rounds have all nodes, and begin as soon as all are ready."""
    return {"min_nodes": nodes, "max_nodes": nodes, "max_restarts": None}


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Both meetings of this many nodes, and the floor."""
    driver.check_descriptors(nodes)
    floor = _Floor()
    cold_s = []
    for _ in range(min(plan.repeats, COLD_REPEATS_MAX)):
        floor.measure(nodes, plan.repeats)
        cold_s.append(_cold(plan, nodes))
    warm = _warm(plan, nodes)
    floor.measure(nodes, plan.repeats)

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

    sockets = f"bare sockets, {loop_name()}"
    figures = [
        figure("warm", "from the first node's call to the last node's answer", warm["span_s"]),
        figure("floor warm", f"{sockets}: 120 bytes there and 200 back, a node", floor.warm_s),
        figure("cold", "the same, each node connecting and attaching first", cold_s),
        figure("floor cold", f"{sockets}: connecting first", floor.cold_s),
        figure("skew", "warm: from the first node's call to the last node's call", warm["skew_s"]),
        figure("nodes' CPU", "warm: of all nodes' processes together", warm["nodes_cpu_s"]),
    ]
    if warm["cpu_s"]:
        figures.append(figure("coordinator's CPU", "warm: a round", warm["cpu_s"]))
        figures.append(figure("floor's CPU", "warm: of the process that listens", floor.cpu_s))
    if plan.processes == 1:  # as the floor's sockets are
        over = figures[0].median / figures[1].median
        figures.append(figure("warm / floor", "the medians' ratio", [over], "x"))
    return figures


class _Floor:
    """The times of bare sockets, in seconds."""

    def __init__(self) -> None:
        self.cold_s: list[float] = []
        self.warm_s: list[float] = []
        self.cpu_s: list[float] = []

    def measure(self, nodes: int, rounds: int) -> None:
        """One cold meeting of as many sockets, and warm ones."""
        with driver.floor(nodes) as (server, bare, answer):
            self.cold_s.append(driver.span([answer], "formed_s"))
            bare.ask("settle")
            for _ in range(rounds):
                before_s = server.usage().cpu_s
                self.warm_s.append(driver.span([bare.ask("floor_meet")], "formed_s"))
                self.cpu_s.append(server.usage().cpu_s - before_s)


def _cold(plan: driver.Plan, nodes: int) -> float:
    with driver.fleets(plan.processes) as fleets:
        answers = fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )
        fleets.ask("disconnect")
    return driver.span(answers, "formed_s")


def _warm(plan: driver.Plan, nodes: int) -> dict[str, list[float]]:
    with driver.fleets(plan.processes) as fleets:
        fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )
        fleets.ask("settle")
        found = warm_rounds(plan, fleets, plan.repeats)
        fleets.ask("disconnect")
    return found


def warm_rounds(plan: driver.Plan, fleets: driver.Fleets, rounds: int) -> dict[str, list[float]]:
    """End the round of all nodes, and let them meet again, `times` times.

    For each meeting: its length, the time between the first and the last call, and the CPU time of
    the nodes and, if the coordinator was started here, of the coordinator.
    """
    found: dict[str, list[float]] = {n: [] for n in ("span_s", "skew_s", "cpu_s", "nodes_cpu_s")}
    for _ in range(rounds):
        fleets.end_round()
        before_s = plan.cpu_s()
        answers = fleets.ask("meet")
        if before_s is not None:
            found["cpu_s"].append((plan.cpu_s() or 0.0) - before_s)
        found["span_s"].append(driver.span(answers, "formed_s"))
        found["skew_s"].append(driver.span(answers, "called_s"))
        found["nodes_cpu_s"].append(sum(each["cpu_s"] for each in answers))
    return found
