"""A planned departure: real agents, whose workers stop at one step and go on without one of them.

One agent gets SIGTERM. All workers agree on a step, save their state there, and the others train on
from it. Each worker logs every step that it has trained.

    last step before ── ... ──▶ first step after
    of the last worker          of the last worker that goes on
"""

from __future__ import annotations

import signal
import time
from typing import Final

from rallypoint.bench import ways
from rallypoint.bench.agents import Agent, agents, check_count, wait_for
from rallypoint.bench.driver import Plan
from rallypoint.bench.event_log import LoggedEvent
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.processes import BenchError, wait_until
from rallypoint.bench.ways import Way
from rallypoint.net import free_port

PLAIN: Final = "rallypoint.bench.yielding_worker"
DDP: Final = "rallypoint.bench.ddp_yielding_worker"
LOST: Final = "steps lost"
PAUSE: Final = "between two steps"
CALM_S: Final = 0.5
"""Between the first step of all and the notice."""
WITHIN_S: Final = 120.0
_ABOUT: Final = {
    PAUSE: "one agent of several gets SIGTERM; from the end of the last step of all workers until "
    "the last of those that go on has trained its first step",
    LOST: "steps that a worker has trained before and that are trained again",
}


def check(plan: Plan, nodes: int) -> None:
    """Raise BenchError if this cannot be measured here."""
    ways.chosen(plan.ways, is_ddp=plan.ddp, kind=Agent)
    check_count("drain", nodes, "at least two must be left to go on")


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Drain one of this many, each time in a new run, in each of the plan's ways in turn."""
    check(plan, nodes)
    chosen = ways.chosen(plan.ways, is_ddp=plan.ddp, kind=Agent)
    results = ways.in_turn(plan, chosen, lambda way: _once(plan, nodes, way))
    worker = "a small DDP job (gloo)" if plan.ddp else "plain Python"
    return [
        Figure(
            scenario="drain",
            name=f"{way.name}: {name}" if len(chosen) > 1 else name,
            nodes=nodes,
            unit=unit,
            values=tuple(each[name] for each in found),
            about=f"{_ABOUT[name]}; {way.shown}; workers: {worker}",
            target=target,
        )
        for way, found in results.items()
        for name, unit, target in (
            (LOST, "steps", Target(0, worst=True)),
            (PAUSE, "ms", None if way.drained_ms is None else Target(way.drained_ms)),
        )
    ]


def _once(plan: Plan, nodes: int, way: Way) -> dict[str, float]:
    with agents(
        nodes,
        f"{nodes - 1}:{nodes}",
        plan.at.endpoint or f"127.0.0.1:{free_port()}",
        plan.run_id(),
        worker=DDP if plan.ddp else PLAIN,
        kind=way.kind,
        token=plan.at.token,
        until="trained",
        within_s=WITHIN_S,
        options=way.options,
    ) as started:
        if way.ready is not None:
            wait_for(started, way.ready, within_s=WITHIN_S)
        time.sleep(CALM_S)
        *others, leaving = started  # The first one may host the coordinator.
        notice_s = time.monotonic()
        leaving.process.send_signal(signal.SIGTERM)
        wait_until(
            lambda: all(_after(agent, nodes, notice_s) for agent in others),
            "a step without the node that left",
            WITHIN_S,
            lambda: next(filter(None, (agent.problem() for agent in others)), ""),
        )
        before = [_before(agent, nodes) for agent in started]
        after = [_after(agent, nodes, notice_s)[0] for agent in others]
        _check_together(before)
        lost = max(0, before[0]["step"] + 1 - min(each["step"] for each in after))
        pause_s = max(each["at_s"] for each in after) - max(each["at_s"] for each in before)
    return {LOST: float(lost), PAUSE: 1e3 * pause_s}


def _before(agent: Agent, nodes: int) -> LoggedEvent:
    """Its last step with all nodes."""
    return [each for each in agent.events("trained") if each["size"] == nodes][-1]


def _after(agent: Agent, nodes: int, since_s: float) -> list[LoggedEvent]:
    """Its steps without the node that left."""
    return [each for each in agent.events("trained", since_s) if each["size"] == nodes - 1]


def _check_together(last: list[LoggedEvent]) -> None:
    """Raise BenchError if the workers did not all stop after the same step."""
    steps = {each["step"] for each in last}
    if len(steps) > 1:
        raise BenchError(f"the workers stopped after different steps: {sorted(steps)}")
