"""How soon a host without power is lost: hosts are network namespaces, and a cable is pulled.

Each node is a process on a host of its own, and the coordinator on another one. Nothing is sent
when the cable is pulled. Survivors' workers *fail* at once, like workers that connect to the lost
host just then, or they *hang*, as most do: then only silence and witnesses tell.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from typing import Final

from rallypoint.bench import driver, hosts
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.hosts import Host, Network
from rallypoint.bench.node_processes import (
    NodeProcesses,
    end_all,
    last_s,
    names,
    said_by,
    wait_for,
    wait_for_round,
)
from rallypoint.bench.preempted import WORKERS
from rallypoint.bench.processes import BenchError, scratch
from rallypoint.bench.real_nodes import regrouping
from rallypoint.core.values import ChangeKind, RunSettings

LOST_S: Final = 9.0
CALM_S: Final = 8.0
"""From the round's start on, in which the nodes connect to the hosts that they are to watch."""
HEARTBEAT_S: Final = RunSettings().suspect_after_s / 3
"""The cable is pulled at any time between two heartbeats."""
WITHIN_S: Final = 90.0
NODES_MAX: Final = 64
REPEATS_MAX: Final = 5


def check(nodes: int) -> None:
    """Raise BenchError if this cannot be measured here."""
    problem = hosts.why_not()
    if problem:
        raise BenchError(
            f"power-loss makes a network of its own for each host, and cannot: {problem}",
            "run it as root on Linux; `rallypoint bench cut` needs no root, and has no witnesses",
        )
    if not 3 <= nodes <= NODES_MAX:
        raise BenchError(f"power-loss has from 3 to {NODES_MAX} hosts, not {nodes}")


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Take the power of one of this many hosts, each time in a new run."""
    check(nodes)
    results: dict[str, list[tuple[float, float]]] = {workers: [] for workers in WORKERS}
    for _ in range(min(plan.repeats, REPEATS_MAX)):
        for workers, found in results.items():
            found.append(_once(plan, nodes, workers))
    figures = []
    for workers, found in results.items():
        about = (
            f"{nodes} hosts with a node each; from the loss of one's network until the last "
            f"survivor {{}}; survivors' workers {workers}"
        )
        lost = about.format("is notified that this node was lost, and is the cause")
        columns = (
            Column(f"workers {workers}: lost", "s", lost, Target(LOST_S, worst=True)),
            Column(f"workers {workers}: next round", "s", about.format("has its next round")),
        )
        figures += figures_of("power-loss", nodes, columns, found)
    return figures


def _once(plan: driver.Plan, nodes: int, workers: str) -> tuple[float, float]:
    """Seconds until all survivors know the cause, and until all have the next round."""
    run_id = plan.run_id()
    with contextlib.ExitStack() as stack:
        net, folder = stack.enter_context(hosts.network()), stack.enter_context(scratch())
        desk, machines = net.host("desk"), [net.host(f"n{number}") for number in range(nodes)]
        with desk.inside():
            served = driver.served("--host", desk.address, "--insecure")
            port = stack.enter_context(served).address.port
        groups: list[NodeProcesses] = []
        stack.callback(lambda: end_all(each.process for each in groups))
        try:
            for host, name in zip(machines, names("node", 0, nodes), strict=True):
                what = regrouping(
                    *(f"http://{desk.address}:{port}", (name,), run_id, nodes),
                    min_nodes=nodes - 1,
                    local_addr=host.address,
                )
                with host.inside():
                    groups.append(NodeProcesses(folder, what))
            return _lose(net, machines, groups, workers)
        except BenchError as error:
            raise BenchError(f"{error}\n{said_by(groups)}".strip(), error.hint) from error


def _lose(
    net: Network, machines: list[Host], groups: list[NodeProcesses], workers: str
) -> tuple[float, float]:
    wait_for(groups, "met", "all nodes in a round")
    time.sleep(CALM_S + random.uniform(0, HEARTBEAT_S))
    *others, victim = groups
    gone_s = time.monotonic()
    net.part(machines[-1])
    if workers == "fail":
        for group in others:
            group.signal(group.names, signal.SIGUSR1)
    formed_s = wait_for_round(others, gone_s, WITHIN_S)
    lost = wait_for(
        others,
        "verdict",
        "all survivors to know who was lost",
        gone_s,
        only=lambda each: each["kind"] == ChangeKind.NODE_LOST and each["nodes"] == victim.names,
    )
    return last_s(lost) - gone_s, formed_s - gone_s
