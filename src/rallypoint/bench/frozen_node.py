"""The effects of a hanging node: one of several `rallypoint run` agents is stopped by SIGSTOP.

After `suspect_after_s` the node is suspect, and nothing else happens. When another node's worker
fails, the coordinator probes the suspect node. It does not answer, so it is lost.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Sequence
from typing import Final

from rallypoint.bench import coordinator_api
from rallypoint.bench.agents import Agent, agents, check_count, wait_for
from rallypoint.bench.driver import Plan
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.processes import BenchError, wait_until
from rallypoint.core.values import RunSettings
from rallypoint.net import free_port

CALM_S: Final = 1.0
"""The seconds between the start of the last worker and SIGSTOP."""
RUN: Final = RunSettings()
HEARTBEAT_S: Final = RUN.suspect_after_s / 3
"""A node may be stopped at any time between two of its heartbeats."""
SUSPECT_S: Final = RUN.suspect_after_s + 1.0
LOST_S: Final = RUN.probe_s + 0.5
REPEATS_MAX: Final = 5


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Stop one of this many, each time in a new run."""
    check_count("frozen-node", nodes)
    columns = (
        Column(
            "suspect",
            "s",
            "from SIGSTOP of one agent and its worker until the coordinator shows the node as "
            "silent",
            Target(SUSPECT_S, worst=True),
        ),
        Column(
            "lost after a failure",
            "s",
            "one node is suspect; from a survivor's worker failing until the last survivor's agent "
            "is notified that the suspect one is lost, and is the cause",
            Target(LOST_S),
        ),
    )
    results = (_once(plan, nodes) for _ in range(min(plan.repeats, REPEATS_MAX)))
    return figures_of("frozen-node", nodes, columns, results)


def _once(plan: Plan, nodes: int) -> tuple[float, float]:
    """Seconds from SIGSTOP until it is suspect, and from a failure until it is lost."""
    port, token, run_id = free_port(), secrets.token_urlsafe(32), plan.run_id()
    place = f"127.0.0.1:{port}"
    with agents(nodes, f"{nodes - 1}:{nodes}", place, run_id, token=token) as started:
        *survivors, victim = started  # The first one hosts the coordinator.
        time.sleep(CALM_S + random.uniform(0, HEARTBEAT_S))

        def is_suspect() -> bool:
            shown = coordinator_api.members(port, run_id, token)
            return any((m["name"], m["link"]) == (victim.name, "silent") for m in shown)

        stopped_s = time.monotonic()
        victim.signal(signal.SIGSTOP)
        wait_until(is_suspect, "the stopped node to be suspect")
        suspect_s = time.monotonic() - stopped_s
        failed_s = time.monotonic()
        os.kill(survivors[1].worker_pid, signal.SIGUSR1)
        lost = wait_for(survivors, "verdict", failed_s)
        _check_cause(survivors, failed_s, victim.name)
    return suspect_s, max(lost) - failed_s


def _check_cause(survivors: Sequence[Agent], since_s: float, name: str) -> None:
    """Raise BenchError if a survivor received another cause: that would be another figure."""
    for survivor in survivors:
        verdict = survivor.events("verdict", since_s)[0]
        if verdict["kind"] != "node_lost" or verdict["nodes"] != [name]:
            raise BenchError(f"{survivor.name} received another cause: {verdict}")
