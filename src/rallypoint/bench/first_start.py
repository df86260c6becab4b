"""What `--preload` costs or saves at the first start of a job: real agents with DDP workers.

A named module is imported once by each agent, and its workers wait for that. Cold and preloaded
starts take turns, the first one of each pair in turn, so that other load affects both.
"""

from __future__ import annotations

import time
from typing import Final

from rallypoint.bench import ways
from rallypoint.bench.agents import DDP, agents, check_count
from rallypoint.bench.driver import Plan
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.processes import cpu_of_tree_s
from rallypoint.bench.report import RATIO
from rallypoint.net import free_port

NAMED: Final = "--preload=torch"
NO_SLOWER: Final = 1.05
WITHIN_S: Final = 120.0
_ABOUT: Final = (
    "{}: from the start of the first agent until the last worker of a small DDP job (gloo) has "
    "taken its first step"
)
_CPU: Final = "the same, CPU time of all agents, their preloaders and workers until then"
COLUMNS: Final = (
    Column("cold", "s", _ABOUT.format("rallypoint run")),
    Column("named", "s", _ABOUT.format(f"rallypoint run {NAMED}")),
    Column("named / cold", RATIO, "the two of a pair", Target(NO_SLOWER)),
    Column("cold, CPU", "s", _CPU),
    Column("named, CPU", "s", _CPU),
    Column("named / cold, CPU", RATIO, "the two of a pair"),
)


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Start jobs of this many agents, `plan.repeats` pairs."""
    ways.check_torch("first-start")
    check_count("first-start", nodes)
    return figures_of(
        "first-start", nodes, COLUMNS, [_pair(plan, nodes, n) for n in range(plan.repeats)]
    )


def _pair(plan: Plan, nodes: int, index: int) -> tuple[float, ...]:
    found: dict[bool, tuple[float, float]] = {}
    for is_named in (False, True) if index % 2 else (True, False):
        found[is_named] = _once(plan, nodes, (NAMED,) if is_named else ())
    (cold_s, cold_cpu_s), (named_s, named_cpu_s) = found[False], found[True]
    walls = (cold_s, named_s, named_s / cold_s)
    return (*walls, cold_cpu_s, named_cpu_s, named_cpu_s / cold_cpu_s)


def _once(plan: Plan, nodes: int, options: tuple[str, ...]) -> tuple[float, float]:
    """Seconds until the first step of all, and CPU seconds until then."""
    began_s = time.monotonic()
    with agents(
        nodes,
        f"{nodes}:{nodes}",
        f"127.0.0.1:{free_port()}",
        plan.run_id(),
        worker=DDP,
        until="stepped",
        within_s=WITHIN_S,
        options=options,
    ) as started:
        cpu_s = sum(cpu_of_tree_s(agent.process.pid) for agent in started)
        stepped = [agent.first("stepped") or began_s for agent in started]
        return max(stepped) - began_s, cpu_s
