"""The effects of a network cut between one node and the coordinator: for 3 s, and for good.

One node reaches a `rallypoint serve` through a proxy. The proxy is cut for 3 s, like a cable:
nothing passes, and neither side notices. In the second case the connection is reset as well, as by
a firewall that was started again. Then the run is watched for longer than any grace: no node may be
lost, and no round may end. In the third case the network is cut for good and the process behind it
is killed, because a machine without power sends no last packet.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.node_processes import NodeProcesses, last_s, names, node_processes, wait_for
from rallypoint.bench.proxy import Proxy
from rallypoint.bench.real_nodes import Specification, regrouping
from rallypoint.core.values import RunSettings

CUT_S: Final = 3.0
CALM_S: Final = 1.0
RUN: Final = RunSettings()
WATCH_S: Final = RUN.reconnect_grace_s + RUN.suspect_after_s + 3.0
"""How many seconds the run is watched after the cut. No node may be lost in that time."""
REPEATS_MAX: Final = 5
WITHIN_S: Final = RUN.lost_after_s + 30.0
POWER_S: Final = RUN.lost_after_s + RUN.suspect_after_s
CUTS: Final = {"cut": False, "cut and reset": True}


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Cut off one of this many nodes, each time in a new run."""
    repeats = min(plan.repeats, REPEATS_MAX)
    figures = []
    for name, resets in CUTS.items():
        results = [_blip(plan, nodes, resets=resets) for _ in range(repeats)]
        disturbed = tuple(float(len(notified)) for notified, _ in results)
        about = f"one of {nodes} nodes is cut off for {CUT_S:g} s"
        if resets:
            about += ", and its connection reset"
        figures.append(
            Figure(
                scenario="cut",
                name=f"{name}: nodes disturbed",
                nodes=nodes,
                unit="nodes",
                values=disturbed,
                about=f"{about}; nodes that are lost, or are notified that their round ended, "
                f"until {WATCH_S:g} s after that",
                target=Target(0, worst=True),
            )
        )
        again = tuple(again_s for _, again_s in results if again_s is not None)
        if again:
            figures.append(
                Figure(
                    scenario="cut",
                    name=f"{name}: attached again",
                    nodes=nodes,
                    unit="s",
                    values=again,
                    about=f"{about}; from the mending until it is attached again",
                )
            )
    figures.append(
        Figure(
            scenario="cut",
            name="power loss: all are told",
            nodes=nodes,
            unit="s",
            values=tuple(_power(plan, nodes) for _ in range(min(repeats, 2))),
            about="one node's network and process are gone, and nothing was sent; from then until "
            "the last survivor is notified, where no worker fails",
            target=Target(POWER_S, worst=True),
        )
    )
    return figures


@contextmanager
def _cut_off(plan: driver.Plan, nodes: int) -> Iterator[tuple[Proxy, NodeProcesses, NodeProcesses]]:
    """The proxy, the nodes that do not use it, and the node that does."""
    run_id = plan.run_id()

    def some(endpoint: str, which: tuple[str, ...]) -> Specification:
        return regrouping(endpoint, which, run_id, nodes, min_nodes=1)

    all_ = names("node", 0, nodes)
    with Proxy(plan.at.address.port) as proxy:
        behind = some(f"http://127.0.0.1:{proxy.port}", all_[-1:])
        with node_processes(some(plan.at.endpoint, all_[:-1]), behind) as [others, one]:
            wait_for([others, one], "met", "all nodes in a round")
            time.sleep(CALM_S)
            yield proxy, others, one


def _blip(plan: driver.Plan, nodes: int, *, resets: bool) -> tuple[set[str], float | None]:
    """The disturbed nodes, and after how long the node was attached again, if it had to be."""
    with _cut_off(plan, nodes) as (proxy, others, one):
        cut_s = time.monotonic()
        proxy.cut()
        if resets:
            proxy.reset()
        time.sleep(CUT_S)
        mended_s = time.monotonic()
        proxy.mend()
        time.sleep(WATCH_S)
        notified = {name for group in (others, one) for name in group.first("told", cut_s)}
        again = one.first("attached", cut_s).get(one.names[0])
        for problem in filter(None, (each.problem() for each in (others, one))):
            raise driver.BenchError(problem)
        return notified, None if again is None else float(again["at_s"]) - mended_s


def _power(plan: driver.Plan, nodes: int) -> float:
    """Seconds until all survivors are notified."""
    with _cut_off(plan, nodes) as (proxy, others, one):
        proxy.cut()
        gone_s = one.kill(one.names)
        notified = wait_for([others], "told", "all survivors to be notified", gone_s, WITHIN_S)
        return last_s(notified) - gone_s
