"""How soon all survivors are notified that one `rallypoint run` agent was killed by `kill -9`.

All kills are in one run. After each, another agent takes the free place, and the next kill waits
until all agents are in one round again. The agent that hosts the coordinator is never killed.
"""

from __future__ import annotations

import time
from typing import Final

from rallypoint.bench.agents import Agent, check_count, team, wait_for
from rallypoint.bench.driver import Plan
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.processes import wait_until
from rallypoint.net import free_port

TOLD_MS: Final = 100.0
READY_MS: Final = 200.0
TOLD: Final = "all survivors are told"
READY: Final = "next round after the last is ready"
_KILL: Final = "right before kill -9 of one agent, which does not host the coordinator"
GRACE_MS: Final = 900.0
"""If it took longer than this, a grace had passed, because the end of the connection was no proof.
"""
CALM_S: Final = 0.5
"""Between the last node's round and the next kill."""
WITHIN_S: Final = 120.0


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Kill one of this many, `plan.repeats` times."""
    check_count("kill", nodes)
    endpoint = f"127.0.0.1:{free_port()}"
    results = []
    with team(nodes, f"{nodes - 1}:{nodes}", endpoint, plan.run_id()) as made:
        for index in range(plan.repeats):
            time.sleep(CALM_S)
            killed_s = made.kill(made.each[1 + index % (nodes - 1)])
            results.append(_ends_ms(made.each, killed_s))
            made.add()
            _wait_until_whole(made.each, killed_s)
    return [*_figures(nodes, results), _graces(nodes, results)]


def _ends_ms(survivors: list[Agent], killed_s: float) -> dict[str, float]:
    """Milliseconds from the kill to each moment after it."""
    notified = wait_for(survivors, "told", killed_s)
    formed = max(wait_for(survivors, "formed", killed_s))
    ends_s = {
        "the first survivor is told": min(notified),
        TOLD: max(notified),
        "all workers are told": max(wait_for(survivors, "worker_told", killed_s)),
        "all have the next round": formed,
        "all workers are at work": max(wait_for(survivors, "working", killed_s)),
    }
    ready_s = max(wait_for(survivors, "ready", killed_s))
    ends_ms = {name: 1e3 * (at_s - killed_s) for name, at_s in ends_s.items()}
    return ends_ms | {READY: 1e3 * (formed - ready_s)}


def _figures(nodes: int, results: list[dict[str, float]]) -> list[Figure]:
    columns = (
        Column(
            "the first survivor is told",
            "ms",
            f"from {_KILL}, until the first survivor is notified",
        ),
        Column(TOLD, "ms", f"from {_KILL}, until the last survivor is notified", Target(TOLD_MS)),
        Column(
            "all workers are told",
            "ms",
            f"from {_KILL}, until the last surviving worker is notified (callback or SIGTERM)",
        ),
        Column(
            "all have the next round",
            "ms",
            f"from {_KILL}, to the last survivor's having its next round",
        ),
        Column(
            READY,
            "ms",
            "from the last survivor's being ready after that, to the last survivor's having its "
            "next round",
            Target(READY_MS),
        ),
        Column(
            "all workers are at work",
            "ms",
            f"from {_KILL}, to the last survivor's new worker having its World",
        ),
    )
    values = ([each[column.name] for column in columns] for each in results)
    return figures_of("kill", nodes, columns, values)


def _graces(nodes: int, results: list[dict[str, float]]) -> Figure:
    late = sum(each[TOLD] > GRACE_MS for each in results)
    return Figure(
        scenario="kill",
        name="told after the grace",
        nodes=nodes,
        unit="%",
        values=(100 * late / len(results),),
        about=f"kills whose last survivor was notified after more than {GRACE_MS:g} ms: the end "
        "of the connection was no proof there",
    )


def _wait_until_whole(those: list[Agent], since_s: float) -> None:
    """Wait until all agents are in one round, and their workers have started in it."""

    def are_whole() -> bool:
        formed = [agent.events("formed", since_s)[-1:] for agent in those]
        rounds = {(each["round"], each["nodes"]) for events in formed for each in events}
        if not all(formed) or len(rounds) > 1:
            return False
        number, size = rounds.pop()
        working = [agent.events("working", since_s)[-1:] for agent in those]
        return size == len(those) and all(w and w[0]["round"] == number for w in working)

    wait_until(are_whole, "all agents in one round", WITHIN_S)
