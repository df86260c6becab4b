"""How soon all know which worker hangs, and where: real agents, with a short `--hang-timeout`.

    last progress ──(--hang-timeout)──▶ asked for stacks ──▶ the cause
    of any worker                       2 s at most          at the last agent

The worker sleeps outside the barrier in which the others wait for it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Final

from rallypoint.bench.agents import Agent, agents, check_count, wait_for
from rallypoint.bench.driver import Plan
from rallypoint.bench.figure import Column, Figure, Target, figures_of
from rallypoint.bench.processes import BenchError
from rallypoint.core.values import HANG
from rallypoint.net import free_port

WORKER: Final = "rallypoint.bench.yielding_worker"
PLACE: Final = "load_data"
"""The function in which the worker hangs."""
TIMEOUT_S: Final = 8.0
OVER_S: Final = 2.0
CALM_S: Final = 0.5
REPEATS_MAX: Final = 5
_ABOUT: Final = (
    "from the last progress of any worker until the last agent is notified that the round has "
    "ended, with the hanging worker and its stack as the cause"
)
COLUMNS: Final = (
    Column("until the cause", "s", f"{_ABOUT}; --hang-timeout {TIMEOUT_S:g}s"),
    Column("over the timeout", "s", f"{_ABOUT}; less --hang-timeout", Target(OVER_S, worst=True)),
)


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Let one worker of this many hang, each time in a new run."""
    check_count("hang", nodes)
    repeats = min(plan.repeats, REPEATS_MAX)
    return figures_of("hang", nodes, COLUMNS, [_once(plan, nodes) for _ in range(repeats)])


def _once(plan: Plan, nodes: int) -> tuple[float, float]:
    with agents(
        nodes,
        f"{nodes}:{nodes}",
        f"127.0.0.1:{free_port()}",
        plan.run_id(),
        worker=WORKER,
        until="trained",
        options=("--max-restarts=1", f"--hang-timeout={TIMEOUT_S:g}s"),
    ) as started:
        time.sleep(CALM_S)
        *_, guilty = started
        hung_s = time.monotonic()
        os.kill(guilty.worker_pid, signal.SIGUSR1)
        known_s = max(wait_for(started, "verdict", hung_s))
        _check_cause(started, hung_s, guilty.name)
        last_s = max(agent.last_s("advanced", known_s) for agent in started)
    return known_s - last_s, known_s - last_s - TIMEOUT_S


def _check_cause(all_of_them: Sequence[Agent], since_s: float, guilty: str) -> None:
    """Raise BenchError if an agent got another cause, or one without the place."""
    for agent in all_of_them:
        verdict = agent.events("verdict", since_s)[0]
        is_named = verdict["cause"] == HANG and verdict["nodes"] == [guilty]
        if not (is_named and any(PLACE in line for line in verdict["lines"])):
            raise BenchError(f"{agent.name} received another cause: {verdict}")
