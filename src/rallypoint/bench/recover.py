"""From the `kill -9` of one node to the first step of the next round: real agents, real workers.

    killed ── noticed ──▶ told ──▶ stopped ──▶ met ──▶ started
              the first   the last  the last    the last   the last worker
              survivor    survivor  survivor's  survivor   has taken its
              notified    notified  workers     has the    first step
                                    have ended  new round

Each of the five is the time between two neighbours. Rallypoint determines the times of noticing,
telling and meeting. Stopping and starting depend on the workers' program.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from typing import Final

from rallypoint.bench.agents import DDP, PLAIN, Agent, agents, check_count, wait_for
from rallypoint.bench.driver import Plan
from rallypoint.bench.figure import Figure
from rallypoint.bench.processes import BenchError
from rallypoint.net import free_port

STAGES: Final = {
    "noticed": "from kill -9 of one node's processes until the first survivor's agent is notified",
    "told": "until the last survivor's agent is notified",
    "stopped": "until the last survivor's agent has stopped its worker",
    "met": "until the last survivor's agent has its new round",
    "started": "until the last survivor's new worker has taken its first step",
}
OURS: Final = ("noticed", "told", "met")
REPEATS_MAX: Final = 5
WITHIN_S: Final = 120.0
RAISED: Final = "a worker raises"
_RAISED: Final = {RAISED: "from the exception to the next round's first step"}
PRELOAD: Final = ("--preload", "--set", "preload_after=8s")
"""The first step is taken long before, so that all modules of a worker are known then."""


def check(plan: Plan, nodes: int) -> None:
    """Raise BenchError if this cannot be measured here."""
    if plan.ddp and importlib.util.find_spec("torch") is None:
        raise BenchError(
            "--ddp needs torch, which is not installed",
            "pip install 'rallypoint[torch]', or leave --ddp out to use a plain Python worker",
        )
    if plan.preload and not plan.ddp:
        raise BenchError(
            "--preload needs --ddp: a plain Python worker imports too little to preload",
            "rallypoint bench recover --ddp --preload",
        )
    check_count("recover", nodes, "at least two survivors must be left to meet again")


def measure(plan: Plan, nodes: int) -> list[Figure]:
    """Kill one of this many, each time in a new run."""
    check(plan, nodes)
    results = [_once(plan, nodes) for _ in range(min(plan.repeats, REPEATS_MAX))]
    raised = [each.pop(RAISED) for each in results if RAISED in each]
    worker = "a small DDP job (gloo)" if plan.ddp else "plain Python"
    if plan.preload:
        worker = f"{worker}, --preload"
    ours = [sum(each[name] for name in OURS) for each in results]
    total = [sum(each.values()) for each in results]

    def figure(name: str, about: str, values: list[float]) -> Figure:
        return Figure(
            scenario="recover",
            name=name,
            nodes=nodes,
            unit="ms",
            values=tuple(value * 1e3 for value in values),
            about=about,
        )

    return [
        *(figure(name, about, [r[name] for r in results]) for name, about in STAGES.items()),
        figure("the share that is ours", "noticed, told and met together", ours),
        figure("in all", f"from the kill to the next round's first step; workers: {worker}", total),
        *(
            [figure(RAISED, "from its end to the next round's first step", raised)]
            if raised
            else []
        ),
    ]


def _once(plan: Plan, nodes: int) -> dict[str, float]:
    with agents(
        nodes,
        f"{nodes - 1}:{nodes}",
        plan.at.endpoint or f"127.0.0.1:{free_port()}",
        plan.run_id(),
        worker=DDP if plan.ddp else PLAIN,
        token=plan.at.token,
        until="stepped",
        within_s=WITHIN_S,
        options=_options(plan),
    ) as started:
        if plan.preload:
            wait_for(started, "preloaded", within_s=WITHIN_S)
        *survivors, victim = started  # The first one may host the coordinator.
        parts = split(survivors, victim.kill_all())
        return parts | {RAISED: _raise(survivors)} if plan.ddp else parts


def _options(plan: Plan) -> tuple[str, ...]:
    """Options of the agents. Modules are learned soon after the first step."""
    restarts = ("--max-restarts", "1") if plan.ddp else ()
    return (*restarts, *PRELOAD) if plan.preload else restarts


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
