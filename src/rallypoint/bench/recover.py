"""From the `kill -9` of one node to the first step of the next round: real agents, real workers.

    killed ── noticed ──▶ told ──▶ stopped ──▶ met ──▶ started
              the first   the last  the last    the last   the last worker
              survivor    survivor  survivor's  survivor   has taken its
              notified    notified  workers     has the    first step
                                    have ended  new round

Each of the five is the time between two neighbours. Rallypoint determines the times of noticing,
telling and meeting. Stopping and starting depend on the workers' program. The job is started in
several ways that take turns (ways.py), so that other load affects all of them.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from rallypoint.bench import ways
from rallypoint.bench.agents import PLAIN, Agent, agents, check_count, wait_for
from rallypoint.bench.driver import Plan
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.processes import BenchError
from rallypoint.bench.ways import Way
from rallypoint.net import free_port

STAGES: Final = {
    "noticed": "from kill -9 of one node's processes until the first survivor's agent is notified",
    "told": "until the last survivor's agent is notified",
    "stopped": "until the last survivor's agent has stopped its worker",
    "met": "until the last survivor's agent has its new round",
    "started": "until the last survivor's new worker has taken its first step",
}
OURS: Final = ("noticed", "told", "met")
SHARE: Final = "the share that is ours"
IN_ALL: Final = "in all"
RAISED: Final = "a worker raises"
WITHIN_S: Final = 120.0
_ABOUT: Final = STAGES | {
    SHARE: "noticed, told and met together",
    IN_ALL: "from the kill to the next round's first step",
    RAISED: "from the exception to the next round's first step",
}


def check(plan: Plan, nodes: int) -> None:
    """Raise BenchError if this cannot be measured here."""
    ways.chosen(plan.ways, is_ddp=plan.ddp)
    check_count("recover", nodes, "at least two survivors must be left to meet again")


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Kill one of this many, each time in a new run, in each of the plan's ways in turn."""
    check(plan, nodes)
    chosen = ways.chosen(plan.ways, is_ddp=plan.ddp)
    results = ways.in_turn(plan, chosen, lambda way: _once(plan, nodes, way))
    is_compared = len(chosen) > 1
    return [
        each
        for way, found in results.items()
        for each in _figures(plan, nodes, way, found, f"{way.name}: " if is_compared else "")
    ]


def _figures(
    plan: Plan, nodes: int, way: Way, results: list[dict[str, float]], prefix: str
) -> list[Figure]:
    worker = "a small DDP job (gloo)" if plan.ddp else "plain Python"
    bounds = {SHARE: way.ours_ms, IN_ALL: way.next_step_ms, RAISED: way.raised_ms}
    figures = []
    for name in results[0]:
        bound = bounds.get(name)
        figures.append(
            Figure(
                scenario="recover",
                name=f"{prefix}{name}",
                nodes=nodes,
                unit="ms",
                values=tuple(each[name] * 1e3 for each in results),
                about=f"{_ABOUT[name]}; {way.shown}; workers: {worker}",
                target=None if bound is None else Target(bound),
            )
        )
    return figures


def _once(plan: Plan, nodes: int, way: Way) -> dict[str, float]:
    """Seconds, by the figure's name."""
    is_ours = way.kind is Agent
    with agents(
        nodes,
        f"{nodes - 1}:{nodes}",
        (is_ours and plan.at.endpoint) or f"127.0.0.1:{free_port()}",
        plan.run_id(),
        worker=way.worker if plan.ddp else PLAIN,
        kind=way.kind,
        token=plan.at.token if is_ours else "",
        until="stepped",
        within_s=WITHIN_S,
        options=way.options,
    ) as started:
        if way.ready is not None:
            wait_for(started, way.ready, within_s=WITHIN_S)
        *survivors, victim = started  # The first one may host the coordinator.
        killed_s = victim.kill_all()
        if is_ours:
            parts = split(survivors, killed_s)
            if way.keeps:
                _check_kept(survivors)
            ours = sum(parts[name] for name in OURS)
            found = {**parts, SHARE: ours, IN_ALL: sum(parts.values())}
        else:  # torch's agents log nothing.
            stepped = wait_for(survivors, "stepped", killed_s, WITHIN_S)
            found = {IN_ALL: max(stepped) - killed_s}
        return found | {RAISED: _raise(survivors)} if plan.ddp else found


def _check_kept(survivors: list[Agent]) -> None:
    """Raise BenchError if a survivor's process was started again."""
    again = [each.name for each in survivors if len(each.events("working")) > 1]
    if again:
        raise BenchError(f"the worker of {', '.join(again)} was started again, and not kept")


def _raise(survivors: list[Agent]) -> float:
    """Make a worker fail. The seconds until all have taken the first step of the next round."""
    failed_s = time.monotonic()
    os.kill(survivors[0].worker_pid, signal.SIGUSR1)
    return max(wait_for(survivors, "stepped", failed_s, WITHIN_S)) - failed_s


def split(survivors: list[Agent], killed_s: float) -> dict[str, float]:
    """Wait for the survivors' first steps. The five parts of the time since then, in seconds."""
    wait_for(survivors, "stepped", killed_s, WITHIN_S)
    notified = wait_for(survivors, "told", killed_s)
    ends_s = {
        "noticed": min(notified),
        "told": max(notified),
        "stopped": max(wait_for(survivors, "stopped", killed_s)),
        "met": max(wait_for(survivors, "formed", killed_s)),
        "started": max(wait_for(survivors, "stepped", killed_s)),
    }
    parts, before_s = {}, killed_s
    for name, end_s in ends_s.items():
        # A fast survivor may have stopped its worker before the last one is notified.
        parts[name] = max(0.0, end_s - before_s)
        before_s = max(before_s, end_s)
    return parts
