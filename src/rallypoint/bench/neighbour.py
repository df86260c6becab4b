"""How much one run that floods a coordinator slows another run on the same coordinator.

The honest run makes one call after another, in turn alone and beside each kind of flood. So other
load on the machine affects both, and the ratio of the two is what counts.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections import defaultdict
from typing import Any, Final

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.flood import KINDS
from rallypoint.bench.meet import settings

TIMES: Final = 100
"""How many calls of each kind the honest run makes in each repeat."""
GAP_S: Final = 0.001
WARM_S: Final = 0.3
SETTLE_S: Final = 0.3
ALONE_AFTER_S: Final = 2.0
"""After this many seconds the flooding process has ended, and the coordinator has freed its memory.
Measured earlier, a call alone took longer than one beside the flood.
"""
HONEST: Final = 2
ALL: Final = "all"
P99_RATIO_MAX: Final = 2.0
"""A run at its limits may slow another run by this factor at most."""


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Calls and heartbeats of an honest run, alone and beside a run of this many flooding nodes."""
    driver.check_descriptors(nodes + HONEST)
    took: dict[tuple[str, str], list[float]] = defaultdict(list)
    with driver.fleets(1) as honest:
        honest.connect(
            plan.at, run_id=plan.run_id(), nodes=HONEST, settings=settings(HONEST), ready=True
        )
        honest.ask("settle")
        honest.ask("store", what="set", per_node=10, window=1)
        for _ in range(plan.repeats):
            for kind in (*KINDS, ALL):
                honest.ask("calm", settle_s=ALONE_AFTER_S)
                _ask(honest, took, "alone")
                _beside(plan, honest, took, kind, nodes)
        honest.ask("disconnect")
    return [figure for what in ("set", "beat") for figure in _figures(took, what, nodes)]


def _beside(
    plan: driver.Plan,
    honest: driver.Fleets,
    took: dict[tuple[str, str], list[float]],
    kind: str,
    nodes: int,
) -> None:
    kinds = list(KINDS) if kind == ALL else [kind]
    limits: dict[str, Any] = {**settings(nodes), "suspect_after_s": 60.0, "lost_after_s": 120.0}
    with driver.fleets(1) as greedy:
        greedy.connect(plan.at, run_id=plan.run_id(), nodes=nodes, settings=limits, ready=True)
        for fleet in greedy.each:
            _give_way(fleet.process.pid)
        greedy.ask("flood", kinds=kinds, warm_s=WARM_S)
        _ask(honest, took, kind)
        greedy.ask("calm", settle_s=SETTLE_S)


def _give_way(pid: int) -> None:
    """Let the flooding process run only when the cores are idle."""
    # In a cluster it runs on another machine. Here it would take a core from the coordinator and
    # from the honest run, and the figures would show that instead of the coordinator.
    with contextlib.suppress(AttributeError, OSError):  # no Linux
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def _ask(honest: driver.Fleets, took: dict[tuple[str, str], list[float]], beside: str) -> None:
    for what in ("set", "beat"):
        (answer,) = honest.ask("one_by_one", what=what, times=TIMES, gap_s=GAP_S)
        took[what, beside] += answer["took_s"]


def _figures(took: dict[tuple[str, str], list[float]], what: str, nodes: int) -> list[Figure]:
    called = {"set": "store call", "beat": "heartbeat"}[what]

    def figure(name: str, unit: str, value: float, about: str) -> Figure:
        is_judged = unit == "x" and what == "set" and "p99, beside all" in name
        return Figure(
            scenario="neighbour",
            name=name,
            nodes=nodes,
            unit=unit,
            values=(value,),
            about=about,
            target=Target(P99_RATIO_MAX) if is_judged else None,
        )

    found = []
    alone = took[what, "alone"]
    for percent in (50, 99):
        before_s = _percentile(alone, percent)
        about = f"{len(alone)} of an honest run, one after another"
        found.append(figure(f"{called} p{percent}, alone", "ms", before_s * 1e3, about))
        for kind in (*KINDS, ALL):
            beside_s = _percentile(took[what, kind], percent)
            name = f"{called} p{percent}, beside {kind}"
            found.append(figure(name, "ms", beside_s * 1e3, f"beside a run that floods: {kind}"))
            found.append(figure(f"{name} / alone", "x", beside_s / before_s, "the ratio"))
    return found


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
