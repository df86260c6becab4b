"""What `rallypoint bench` measures of failures, as groups: each figure has its target there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from benchmarks.figure import Figure, Group
from benchmarks.processes import Say
from rallypoint.bench import (
    cut,
    driver,
    host_lost,
    kill,
    ledger_away,
    ledger_reads,
    ledger_writes,
    preempted,
    rack,
)
from rallypoint.bench.driver import Plan
from rallypoint.bench.failover import ETCD
from rallypoint.bench.figure import Figure as BenchFigure

Scenario = Callable[[Plan, int], list[BenchFigure]]
AWAY_S: Final = 20.0
LEDGERS: Final = {"file": "", "etcd": ETCD}


def _group(
    name: str, repeats: int, scenario: Scenario, *sizes: int, is_served: bool = False
) -> Group:
    """A scenario at these sizes. `is_served`: with a `rallypoint serve` beside it."""

    def measure(repeats: int, say: Say) -> list[Figure]:
        figures = []
        for nodes in sizes:
            say(f"{name} with {nodes:,} nodes")
            beside = driver.served() if is_served else contextlib.nullcontext(driver.NOWHERE)
            with beside as at:
                plan = Plan(at, repeats=repeats, seconds=AWAY_S)
                figures += [Figure.of_bench(each) for each in scenario(plan, nodes)]
        return figures

    return Group(name, repeats, measure)


def _over_ledgers(name: str, repeats: int, scenario: Scenario, nodes: int) -> Group:
    """A scenario over a folder, and over etcd."""

    def measure(repeats: int, say: Say) -> list[Figure]:
        figures = []
        for kind, ledger in LEDGERS.items():
            say(f"{name} with {nodes:,} nodes over {kind}")
            plan = Plan(driver.NOWHERE, repeats=repeats, ledger=ledger)
            measured = scenario(plan, nodes)
            figures += [Figure.of_bench(each, over=kind, suffix=kind) for each in measured]
        return figures

    return Group(name, repeats, measure)


GROUPS: Final = (
    _group("kill", 20, kill.measure, 8),
    _group("cut", 3, cut.measure, 8, is_served=True),
    _group("preempted", 3, preempted.measure, 100, is_served=True),
    _over_ledgers("host_lost", 3, host_lost.measure, 8),
    _over_ledgers("rack", 1, rack.measure, 1_000),
    _group("ledger_away", 1, ledger_away.measure, 8),
    _group("ledger_reads", 1, ledger_reads.measure, 10, 100, 1_000),
    _group("ledger_writes", 1, ledger_writes.measure, 10_000),
)
